"""The page of ``coupalign web``: page.py draws it, answers.py computes, server.py serves it, examples.py has scenes."""
