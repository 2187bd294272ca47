"""The API service: `/v1` for many clients, each with a key of its own.

A service of this project (`services/api`) between the gateway and the engines. It knows keys with owner, expiry,
models, windows and token budgets, keeps a row for every request and every act of an administrator, and lets no more
requests through than the engines take. `api_store: embedded` keeps everything in one SQLite file and counts in the
process; `full` uses PostgreSQL and Redis or Valkey, with several workers. `api_development` adds a second instance with
its own account, database, keys and unit. `gateway_auth: keys` puts it behind the door.
"""
