"""A plan is made while other processes register models, which PostgreSQL shows in the middle."""

from dataclasses import replace

from managed_models import manage_files, reasons

from model_catalog.downloads.eviction.criteria import validated_criteria
from model_catalog.downloads.eviction.planning import _Planner
from model_catalog.downloads.queries.plan_queries import RowsQuery, select_rows
from model_catalog.execution.executor import read
from model_catalog.repository.model_catalog import executor_of
from model_catalog.upkeep import register_path


async def test_a_file_of_a_model_whose_row_was_not_yet_read_is_kept(catalog, database, tmp_path):
    """
    The statement that reads files sees a model that the one before it has not seen.
    """
    path = tmp_path / "models" / "a.gguf"
    await manage_files(catalog, database, path.parent, {"a": 4096})
    await register_path(catalog, path, "new", "hf")
    rows = await executor_of(catalog).run(read(select_rows, RowsQuery()))
    criteria = await validated_criteria(
        free_bytes=None, keep_days=0, max_total_bytes=None, providers=None, disk_of=None
    )
    seen = [model for model in rows.models if model.reference == "a"]

    plan = _Planner(replace(rows, models=seen), (), lambda: False).plan(criteria)

    assert plan.models == ()
    assert reasons(plan.kept)["a"] == "its files are also those of a model that is kept"
