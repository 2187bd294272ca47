"""Fixtures for tests of the API service."""
