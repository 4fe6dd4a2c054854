"""Experiments behind the pages in ``docs/``: each is a package with a command line that writes its page's figures."""
