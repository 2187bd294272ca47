"""The API service: keys, limits, usage and admission in front of the engines of a box.

It knows nothing of boxwright; the role `api` writes its settings and starts it. Two of its parts have two
implementations each with the same contract (`contracts.py`): the store of keys and usage (PostgreSQL, or SQLite for one
small box) and the limiter (Redis or Valkey, or in the process for one worker).
"""

VERSION = "0.1.0"
