"""Prefect flows over the stages of recbole_dynamicpo; installed as ``recbole_dynamicpo.flows``.

The flows only call ``recbole_dynamicpo.pipeline``, which knows nothing of Prefect: results lie in folders
named by what decides them, a stage that was interrupted goes on from its checkpoint, and what
flows and tasks exchange is small JSON.
"""
