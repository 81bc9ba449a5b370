"""Random expressions of the language are never blamed by the audit; `python -m benchmarks lookahead` draws 1,000."""

from benchmarks.evaluation.lookahead import audit_expressions, draw_expressions


def test_random_expressions_are_causal_and_shifted_ones_are_found():
    expressions = draw_expressions(25, seed=77)
    audit = audit_expressions(expressions, shift=0, seed=77, places=3)
    assert audit.passed, [expressions[column.name] for column in audit.columns if not column.is_clean]
    shifted = audit_expressions(expressions, shift=3, seed=77, places=2)
    assert {column.ahead for column in shifted.columns} == {3}
