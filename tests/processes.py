"""Programs that tests start."""

import sys

# Where tests run in the background, or under nohup, programs ignore what the tests were told to ignore.
HEED = (
    "import signal\nfor number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_DFL)"
)
OWN_TERMINAL = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)"


def doing_first(steps, command):
    """The command, in a process that has done these steps before.

    Not by `preexec_fn`: that copies the process of the tests, which a system can refuse where tests have mapped more
    memory than there is.
    """
    return [sys.executable, "-c", f"{steps}\nimport os, sys; os.execv(sys.argv[1], sys.argv[1:])", *command]
