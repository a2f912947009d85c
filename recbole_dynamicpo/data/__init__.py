"""Files in, checked atomic files and titles out: no torch, no RecBole."""
