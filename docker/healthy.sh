#!/usr/bin/env bash
# Says by its exit status whether an address answers: docker/healthy.sh http://127.0.0.1:5000/health
exec python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$1"
