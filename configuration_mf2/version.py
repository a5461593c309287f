"""Which version of the code this is, and what a checkpoint that a newer one wrote is met with."""

import warnings


VERSION = "0.2.0"
FIELD = "mf2_version"


class NewerCheckpointWarning(UserWarning):
    """A checkpoint was written by a newer major version of this code than the one that reads it."""


def check_version(saved: str | None, source: str) -> None:
    """A newer major may mean by a field what this code does not: said, not refused, since it may well load."""
    if saved is None:
        return
    major = str(saved).partition(".")[0]
    if major.isdigit() and int(major) <= int(VERSION.partition(".")[0]):
        return
    warnings.warn(
        f"{source}: written by version {saved} of MF², this is {VERSION}; expected major version "
        f"{VERSION.partition('.')[0]} or older. Update the package, or load the checkpoint with the code that it "
        "carries (trust_remote_code=True); until then its answers may differ from what it was trained to give",
        NewerCheckpointWarning,
        stacklevel=2,
    )
