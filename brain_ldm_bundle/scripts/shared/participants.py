"""Read participants.tsv of a BIDS data set, and the tables sub-X/sub-X_sessions.tsv of its sessions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .files import is_there, read_json
from .problems import refuse
from .tables import is_missing, read_numbered

OTHER_UNITS = {  # expected unit: units that a value must be converted from
    "years": re.compile(r"(?!.*year)(.*(month|week|day|hour)|(d|wks?|mos?|mths?|hr?s?)\.?$)", re.IGNORECASE),
    "mL": re.compile(r"\s*(mm|cubic mm|cubic millim)|(?!.*(ml|milli-?l|cm|cc|cent))", re.IGNORECASE),
}
OTHER_TABLES = (".csv", ".txt", ".xls", ".xlsx")  # endings of tables that would be ignored
# Names of rows that are no participants: words of spreadsheets and pandas, in English, German, French, Spanish and Italian.
SUMMARIES = (
    *("average", "mean", "median", "total", "sum", "std", "sd", "count", "min", "max", "minimum", "maximum"),
    *("mittelwert", "summe", "anzahl", "moyenne", "somme", "promedio", "media", "suma", "somma"),
)
LONGEST_LABEL = 100  # chosen: a file's name has at most 255 bytes on most disks, and holds a subject and a session


@dataclass(frozen=True)
class Row:
    """What the tables say about a participant, or about one session of a participant."""

    where: str  # files and rows, for messages
    cells: Mapping[str, str]  # column -> text
    given_once: frozenset[str] = frozenset()  # columns whose cell is the participant's, and not the session's own


# Participant "sub-X" -> session "ses-Y" -> its row. The session is None in a row for all sessions of the participant.
Rows = dict[str, dict[str | None, Row]]


def read_participants(table: str | Path, names: Collection[str] | None) -> tuple[list[str], Rows, list[str]]:
    """Read the rows of participants.tsv. A session's own values replace those of its participant.

    participants.tsv has one row for each participant or, with a column session_id, one row for each session. If the folder
    has a table sub-X/sub-X_sessions.tsv with one of the columns `names`, each of its rows becomes a row of its own. A missing
    value in it stays missing, unless the participant has no other session.

    Args:
        table: participants.tsv.
        names: columns that the caller reads, see `read_numbered`; None for all columns.

    Returns:
        the columns of all tables, the rows, and one line for each problem.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the file is not a table, or has no column participant_id.
    """
    table = Path(table)
    header, numbered, problems = read_numbered(table, ["participant_id", "session_id", *(names or ())])
    if "participant_id" not in header:
        raise ValueError(f"{table}: no column 'participant_id'. It has: {', '.join(header)}")
    columns, rows = dict.fromkeys(header), {}
    for number, cells in numbered.items():
        where = f"{table} row {number}"
        try:
            participant = entity("sub", cells["participant_id"])
            session = None if is_missing(cells.get("session_id")) else entity("ses", cells["session_id"])
            of_sessions = _read_sessions(table.parent / participant / f"{participant}_sessions.tsv", participant, names)
        except ValueError as error:
            problems += [f"{where}: {line}" for line in str(error).split("\n")]
            continue
        row = Row(where, cells, frozenset(header if session is None else ()))
        known = rows.setdefault(participant, {})
        for each in [session] if session or not of_sessions else of_sessions:
            if each in known or None in known or (each is None and known):
                other = next(iter(known.values())).where.split(" row ")[-1]
                problems.append(
                    f"{where}: participant_id {participant} is also in row {other}. Keep one row, or name the session of each "
                    f"in a column session_id"
                )
                break
            known[each] = _merged(row, of_sessions[each], alone=len(of_sessions) == 1) if each in of_sessions else row
            columns |= dict.fromkeys(known[each].cells)
    for participant, sessions in rows.items():
        for row in sessions.values():
            if "split" in row.cells:
                row.cells["split"] = split_name(row.cells["split"])
        if len(splits := {row.cells.get("split", "") for row in sessions.values()}) > 1:
            problems.append(f"{table} {participant}: its sessions have the splits {', '.join(sorted(splits))}. Keep one")
    return list(columns), rows, problems


def read_one_each(table: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Return the columns and, for each participant "sub-X", the cells of a table that has one row for each participant.

    Raises:
        ValueError: the file is not such a table.
    """
    header, numbered, problems = read_numbered(table, ["participant_id"], empty=True)
    if "participant_id" not in header:
        raise ValueError(f"{table}: no column 'participant_id'. It has: {', '.join(header)}")
    rows, first_row = {}, {}
    for number, cells in numbered.items():
        try:
            participant = entity("sub", cells["participant_id"])
            if first_row.setdefault(participant, number) != number:
                raise ValueError(f"participant_id {participant} is also in row {first_row[participant]}")
            rows[participant] = cells
        except ValueError as error:
            problems.append(f"{table} row {number}: {error}")
    refuse(problems)
    return header, rows


def refuse_other_table(path: Path) -> None:
    """Refuse a table with the name of a missing `path`, but another ending, because it would be ignored."""
    if other := next((other for ending in OTHER_TABLES if (other := path.with_suffix(ending)).exists()), None):
        raise ValueError(f"{other}: would be ignored. Save it as {path.name}, cells separated by tabs")


def other_units(table: Path, units: Mapping[str, str]) -> list[str]:
    """Return a line for each column whose unit in participants.json, or the JSON of a table of sessions, is another one.

    `units` has the expected unit of each column.
    """
    problems = []
    folder = table.parent  # its sessions.json describes the tables of all sessions
    for path in (table.with_suffix(".json"), folder / "sessions.json", *sorted(folder.glob("sub-*/sub-*_sessions.json"))):
        description = read_json(path) if is_there(path) else {}
        for name, unit in units.items():
            found = str(entry.get("Units", "")) if isinstance(entry := description.get(name), dict) else ""
            if unit in OTHER_UNITS and not is_missing(found) and OTHER_UNITS[unit].match(found.strip()):
                problems.append(
                    f"{path}: {name} is in {found!r}, but {unit} are expected. Convert the column, or correct Units"
                )
    return problems


def split_name(text: str) -> str:
    """Return the name of a split in lower case. The split "training" is called "train", as in the column split."""
    return "train" if text.lower() == "training" else text.lower()


def _read_sessions(path: Path, participant: str, names: Collection[str] | None) -> dict[str, Row]:
    """Read the sessions of a participant; without the file, or if it has none of the columns `names`, there are none."""
    if not is_there(path):
        refuse_other_table(path)
        return {}
    header, numbered, problems = read_numbered(path, ["participant_id", "session_id", *(names or ())])
    if names is not None and not set(names) & set(header):
        return {}
    if "session_id" not in header:
        raise ValueError(f"{path}: no column 'session_id'. It has: {', '.join(header)}")
    sessions = {}
    for number, cells in numbered.items():
        try:
            session = entity("ses", cells["session_id"])
            other = cells.get("participant_id")
            if not is_missing(other) and entity("sub", other) != participant:
                raise ValueError(f"participant_id is {other}, but the file's name is of {participant}. Correct one of them")
            if session in sessions:
                raise ValueError(f"session_id {session} is also in row {sessions[session].where.split(' row ')[-1]}")
            sessions[session] = Row(f"{path} row {number}", cells)
        except ValueError as error:
            problems.append(f"{path} row {number}: {error}")
    refuse(problems)
    return sessions


def _merged(participant: Row, session: Row, alone: bool) -> Row:
    own = {name: cell for name, cell in session.cells.items() if not (alone and is_missing(cell))}
    own.pop("participant_id", None)
    cells = {**participant.cells, **own}
    return Row(f"{session.where}, {participant.where}", cells, participant.given_once - own.keys())


def find_row(rows: Rows, participant: str, session: str | None) -> Row:
    """Return the row of a session, or the row for all sessions of its participant.

    Raises:
        ValueError: there is no such row.
    """
    sessions = rows.get(participant, {})
    if session in sessions:
        return sessions[session]
    if None in sessions:
        return sessions[None]
    name = f"{participant} {session}" if session else participant
    there = f"only rows for {', '.join(map(str, sessions))}" if sessions else "none for this participant"
    raise ValueError(f"no row for {name}, {there}. Add one to participants.tsv or {participant}_sessions.tsv")


def refuse_given_once(participant: str, rows: Mapping[str | None, Row], quantities: Iterable[str]) -> None:
    """Refuse quantities that were given once for several sessions of a participant, because they change in between.

    Args:
        participant: "sub-X".
        rows: row of each session that is used.
        quantities: columns that may change between sessions, such as age.

    Raises:
        ValueError: one of the columns has only one value.
    """
    once = [
        name
        for name in quantities
        if any(name in row.given_once and not is_missing(row.cells.get(name)) for row in rows.values())
    ]
    if len(rows) > 1 and once:
        raise ValueError(
            f"{participant} has {len(rows)} sessions ({', '.join(map(str, rows))}), but {', '.join(once)} only once, in "
            f"{next(iter(rows.values())).where}. Give the values of each session in {participant}/{participant}_sessions.tsv, "
            f"with a column session_id, or use one session"
        )


def refuse_summary(name: str) -> None:
    """Refuse the name of a row, such as Mean, that a spreadsheet added below those of participants."""
    if name.lower() in SUMMARIES:
        raise ValueError(f"{name} sums up other rows. Remove the row")


def entity(key: str, value: object) -> str:
    """Return a BIDS entity such as "sub-01" from its value, with or without "sub-". A label is letters, digits and +.

    Raises:
        ValueError: the value is no label. It could be a path, for example.
    """
    match = re.fullmatch(rf"(?:{key}-)?([0-9A-Za-z+]+)", str(value))
    if match is None or is_missing(value):
        column = {"sub": "participant_id", "ses": "session_id"}[key]
        raise ValueError(f"{column} must be '{key}-' and letters or digits, as BIDS asks, got {value!r}")
    if len(match[1]) > LONGEST_LABEL:
        raise ValueError(
            f"{key}-{match[1][:10]}... has {len(match[1])} letters and digits, at most {LONGEST_LABEL} fit in a file's name"
        )
    return f"{key}-{match[1]}"


def session_of(path: Path) -> str | None:
    """Return the session "ses-Y" in a file's path inside of its data set, or None.

    Raises:
        ValueError: folder and name have different sessions.
    """
    found = re.findall(r"(?:^|[_/])(ses-[0-9A-Za-z+]+)(?=[_./]|$)", path.as_posix())
    if len(set(found)) > 1:
        raise ValueError(f"{path}: the file's name is another session's. It should hold {found[0]}")
    return found[0] if found else None
