"""A mirror for a site without internet: what its boxes fetch, in a folder that any web server can serve.

`supply` says what an inventory's boxes fetch, `debian` reads package repositories, `builder` fetches and checks.
"""
