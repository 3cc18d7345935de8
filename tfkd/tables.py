"""Tables that read well in a terminal and are Markdown as well."""


def markdown(rows):
    """Returns rows of cells as a Markdown table, its columns aligned.

    Args:
        rows: List of lists of strings, of one length; the first is the heading.

    Example:
    ```python
    print(tables.markdown([["model", "accuracy %"], ["student", "91.20"]]))
    ```
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
