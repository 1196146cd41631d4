"""The page of tables, `docs/ranks_tables.md`, rebuilt from the committed lines."""

from collections.abc import Sequence

from rank_study import agreement, control_table, moments, rival_table, rivals, table


def document(
    lines: Sequence[dict], control_lines: Sequence[dict], rival_lines: Sequence[dict], moment_lines: Sequence[dict]
) -> str:
    """All tables and the second moments as `docs/ranks_tables.md` shows them."""
    pieces = [
        "# The tables of the study of ranks",
        "Rebuilt by `python benchmarks/ranks.py --print --docs docs`; [ranks.md](ranks.md) says what they mean.",
        "## The first study: `benchmarks/results/ranks.jsonl`",
        table.markdown(lines),
        table.further(lines),
        "## Controls, third base, portfolio: `benchmarks/results/controls.jsonl`",
        control_table.markdown(control_lines),
        "## How often a test picks the best",
        agreement.markdown(lines, control_lines),
    ]
    if rival_lines:
        pieces += [
            "## Equal compute, rivals, answers: `benchmarks/results/rivals.jsonl`",
            rival_table.markdown(rival_lines, rivals.tuned_before(control_lines)),
        ]
    if moment_lines:
        pieces += [
            "## Second moments of the gradient: `benchmarks/results/moments.jsonl`",
            moments.markdown(moment_lines),
        ]
    return "\n\n".join(pieces) + "\n"
