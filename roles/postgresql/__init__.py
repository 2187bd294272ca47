"""PostgreSQL for services of the box, on loopback.

The programs are the distribution's (on a Mac Homebrew's); the server is an instance of boxwright's own, with a data
folder, settings, an account and a unit of its own. So a PostgreSQL that was there before goes on as it was, and removal
takes nothing of it. Its administrator signs in on the box itself alone, by the name of the account; services have a
role and a database each, and a password. A timer keeps copies of the databases.
"""
