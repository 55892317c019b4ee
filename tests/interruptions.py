"A training that is killed."

import os


class Killed(BaseException):
    "Takes the process's place."


def breaks(s):
    """Ends the training at the step that the environment names.

    That step is no part of the run, as whoever kills a process is none.
    """
    if os.environ.get("BREAK_AT") == str(s.step):
        raise Killed
