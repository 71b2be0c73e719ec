"""``restante doctor``: examine an installation from outside, and name each fault.

``findings`` defines what a check reports, ``checks`` lists the checks and runs them, and
``repairs`` makes the changes of ``--fix``.  The other modules contain
checks, which change nothing.
"""
