"""Text to SQL: a question, the schema of the tables it is asked of, and the query that answers it.

    {"question": "Who is oldest?", "context": "CREATE TABLE people (name TEXT, age INT)", "answer": "SELECT name FROM …"}
    {"text": "table: people\\ncolumns: Name, Age\\nQ: Who is oldest?\\nA: SELECT Name FROM people ORDER BY …"}

The first is the form of most sets on the hub, with other names for its columns (`schema`, `sql`, `query`). The second is
WikiSQL (Zhong et al. 2017, https://arxiv.org/abs/1709.00103) as MLX's examples write it, in one string: what stands up to
`A:` is the prompt, and the query after it is learned.
"""

from __future__ import annotations

import re

from luthier.data.formats.table import Recognition, Table, as_filled_text, as_joined_text, fault, one, required
from luthier.data.reading import Row
from luthier.data.settings import FormatName
from luthier.types import Completion, Gives

NAME: FormatName = "sql"
GIVES: Gives = "text"
COLUMNS = 'question, schema and sql (or text: "table: …\\ncolumns: …\\nQ: …\\nA: SELECT …")'

QUESTIONS = ("question", "sql_prompt", "prompt", "instruction", "input")
SCHEMAS = ("schema", "context", "sql_context", "create_table", "db_schema", "table_schema", "create_table_statement")
QUERIES = ("sql", "query", "answer", "output", "completion", "response")
_QUERY = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE|CREATE|ALTER|DROP)\b", re.IGNORECASE)
_ONE_STRING = re.compile(r"(table: [^\n]*\ncolumns: [^\n]*\nQ: .*?\nA:)(.*)", re.DOTALL)


def recognise(table: Table) -> Recognition | None:
    """Rows whose answers are SQL, beside a question; or texts that hold all of it."""
    text = table.named(("text",))
    if text is not None and table.mostly(text, lambda value: _ONE_STRING.match(str(value))):
        reason = f"{text} holds a table, its columns, a question after Q: and SQL after A:"
        return Recognition(reason, frozenset({text}), one(_of_one_string, column=text))
    query = next((column for column in table.columns(QUERIES) if table.mostly(column, _is_query)), None)
    question = table.named([name for name in QUESTIONS if query is None or name != query.lower()])
    if query is None or question is None:
        return None
    schema = table.texts(SCHEMAS)
    of = f" over {schema}" if schema is not None else ""
    notes = (
        () if schema is not None else ("No column has the schema of the tables, so the query is learned without it.",)
    )
    reads = frozenset(column for column in (question, schema, query) if column is not None)
    make = one(to_record, question=question, schema=schema, query=query)
    return Recognition(f"{query} is SQL{of} that answers {question}", reads, make, notes)


def to_record(row: Row, question: str = "question", schema: str | None = "schema", query: str = "sql") -> Completion:
    """The row's schema and question, one below the other with a line break after, and the query."""
    asked = as_filled_text(row, question, required(row, row.values, question, question), "the question").strip()
    answer = as_filled_text(row, query, required(row, row.values, query, query), "the query").strip()
    if schema is None:
        return Completion(f"{asked}\n", answer)
    given = as_joined_text(row, schema, required(row, row.values, schema, schema), "the schema").strip()
    return Completion(f"{given}\n\n{asked}\n", answer)


def _of_one_string(row: Row, column: str) -> Completion:
    """What stands up to A:, and the query after it with the space between."""
    text = as_filled_text(row, column, required(row, row.values, column, column), "the text")
    parts = _ONE_STRING.match(text)
    if parts is None:
        found = "the text is not of the lines table:, columns:, Q: and A:, as that of other rows is."
        raise fault(row, column, found, "Write the four lines, or leave this row out.")
    return Completion(parts[1], as_filled_text(row, column, parts[2], "the query after A:"))


def _is_query(value: object) -> bool:
    return isinstance(value, str) and _QUERY.match(value) is not None
