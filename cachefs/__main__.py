"""What ``cachefs`` and ``python -m cachefs`` run."""

import signal


def main() -> None:
    """Importing takes a moment, in which Ctrl-C ends the process as it would any other, without a traceback."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else somebody wants it ignored: nohup, a shell's background job
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from cachefs import cli  # noqa: PLC0415

    signal.signal(signal.SIGINT, before)
    cli.main()


if __name__ == "__main__":
    main()
