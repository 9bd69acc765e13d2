"""The one exception whose message is written for the person who ran the command."""


class SelectronError(Exception):
    """One clear sentence: what was wrong, where, and what would be right.

    The command line prints it and exits with code 2; a traceback appears only with ``--debug``.
    """
