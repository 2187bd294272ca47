"""Which models a box serves, and by which engine: the models' files, and the watchdog that restarts a hanging engine.

The engines have roles of their own. This one fetches and verifies what they read, before any of them starts.
"""
