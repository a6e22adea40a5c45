"""What a controller understands of its members' words, and they of its: each may run another version of Manta."""

from typing import Any

from cluster.keeper import Report
from cluster.members import Announcement
from cluster.plain import SAID, FormatError, unpack


class Hearing:
    """Reads announcements; who does not understand this Manta, or is not understood, is reported once.

    Args:
        report: Notes an event.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._reported: set[str] = set()

    def read(self, member_id: str, record: dict[str, Any]) -> Announcement:
        """Returns what a member says.

        Raises:
            FormatError: It is of a Manta whose words are not understood here.
        """
        try:
            said = unpack(Announcement, record, f"what {member_id} says", formats=SAID)
        except FormatError as error:
            self._report_once(member_id, f"a part is not understood: {error}")
            raise
        if record["format"] < SAID.newest:
            who = f"{said.role} {said.pid} is of Manta {record.get('manta')}, which cannot read the tables of this one"
            self._report_once(member_id, f"{who}: it goes on with its last. End its process, and it is started anew")
        return said

    def _report_once(self, member_id: str, text: str) -> None:
        if member_id not in self._reported:
            self._reported.add(member_id)
            self._report(text, failed=True)
