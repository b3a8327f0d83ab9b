"""The web demo of ``coupalign web``: page.py is its user interface, demo.py computes, server.py serves."""
