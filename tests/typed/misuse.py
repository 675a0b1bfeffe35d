"""Checked and never run: each line is a mistake that both type checkers must report."""

from pathlib import Path

from model_catalog import Model, ModelCatalog, ModelName, ModelRef, open_catalog, sync
from model_catalog.upkeep import CheckReport, VerifiedModel, check_models, verify_models, watch

Model(refrence="m", provider="hf", local_path="/m")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
Model(reference="m", provider="hf")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
Model("m", "hf", "/m")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
Model(reference="m", provider="hf", local_path="/m", size_bytes="1")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
Model(reference="m", provider="hf", local_path="/m", id=1)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
ModelRef.parse(Path("m"))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def misuse(catalog: ModelCatalog) -> None:
    model = await catalog.find_model("m", "hf")
    print(model.size_bytes)  # type: ignore[union-attr] # pyright: ignore[reportOptionalMemberAccess]
    await catalog.find_model()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    await catalog.find_model(Path("m"))  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await catalog.tag_model("hf:m", [])  # type: ignore[call-overload] # pyright: ignore[reportCallIssue, reportArgumentType]
    await catalog.set_alias("hf:m", "main")  # type: ignore[call-overload] # pyright: ignore[reportArgumentType]
    await catalog.list_models("hf")  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue]
    await catalog.register_model({"reference": "m"})  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    open_catalog(3)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def use() -> int:
    async with open_catalog(Path("catalog.db")) as catalog, catalog.transaction() as inner:
        model: Model = await inner.register_model(
            Model(reference="m", provider="hf", local_path="/m", size_bytes=None)
        )
        path: str = model.local_path
        names: list[ModelName] = ["hf:m", ModelRef("hf", "m"), model, *await catalog.list_rows()]
        for name in names:
            await catalog.remove_model(name)
        await catalog.tag_model(model, "chat")
        await catalog.tag_model("hf:m", tags=["chat"])
        await catalog.set_alias(model.ref, "stable")
        await catalog.set_alias("m", "hf", "stable", version="v1")
        total: int = await catalog.get_total_size()
        return total + len(path)


def misuse_without_a_loop(catalog: sync.SyncCatalog) -> None:
    catalog.find_model()  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    catalog.list_models(provder="hf")  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
    catalog.run(check_models, root=[])  # type: ignore[call-overload] # pyright: ignore[reportCallIssue]


def use_without_a_loop() -> int:
    with sync.open_catalog(Path("catalog.db"), timeout_s=3) as catalog:
        with catalog.transaction() as inner:
            model: Model = inner.register_model(Model(reference="m", provider="hf", local_path="/"))
        report: CheckReport = catalog.run(check_models, roots=["/models"])
        results: list[VerifiedModel] = list(catalog.run(verify_models, level="quick"))
        with catalog.run(watch, interval_s=60) as watched:
            checks: int = watched.check_count
        paths = [each.local_path for each in catalog.iter_models(provider="hf")]
        return len(report.findings) + len(results) + checks + len(paths) + len(model.reference)
