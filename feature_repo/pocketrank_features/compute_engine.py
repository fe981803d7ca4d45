"""A Feast compute engine that hands Arrow to the online store.

Named in feature_store.yaml as `batch_engine: type: pocketrank_features.compute_engine.PackComputeEngine`. What is
written is what Feast's own local engine writes; that one turns every value into a protobuf first, and holds the whole
window in memory. Here the newest row of each key comes from the offline store in batches, in which an entity's rows
mostly stay together, and goes to `online_write_arrow`. A view that transforms, aggregates, filters or validates goes
through Feast's own nodes up to the last.
"""

import sys
from collections.abc import Iterator
from typing import Any, Literal

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME, DUMMY_ENTITY_VAL
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.dag.context import ColumnInfo, ExecutionContext
from feast.infra.compute_engines.local.arrow_table_value import ArrowTableValue
from feast.infra.compute_engines.local.compute import LocalComputeEngine, LocalComputeEngineConfig
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.compute_engines.local.nodes import LocalOutputNode
from feast.infra.offline_stores.ibis import IbisRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.utils import _convert_arrow_to_proto

from pocketrank.groups import Int64Array
from pocketrank_cli.command import Bar
from pocketrank_features.pack_store.incoming import SLOT_KEY

ROWS_AT_ONCE = 1 << 15
NEWEST = "__newest"


class PackComputeEngineConfig(LocalComputeEngineConfig):  # type: ignore[misc]
    """What feature_store.yaml says under `batch_engine`.

    Attributes:
        type: names the engine.
    """

    type: Literal["pocketrank_features.compute_engine.PackComputeEngine"] = (
        "pocketrank_features.compute_engine.PackComputeEngine"
    )


class PackComputeEngine(LocalComputeEngine):  # type: ignore[misc]
    """See the module."""

    def _materialize_one(self, registry: BaseRegistry, task: MaterializationTask, **_: Any) -> LocalMaterializationJob:
        job_id = f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
        try:
            context = self.get_execution_context(registry, task)
            builder = _Builder(registry, task, backend=self._get_backend(context))
            if _is_plain(task.feature_view):
                _stream(task, context, builder.get_column_info(task.feature_view))
            else:
                builder.build().execute(context)
        except Exception as error:  # Feast raises it again where the job's error is asked for
            return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.ERROR, error=error)
        return LocalMaterializationJob(job_id=job_id, status=MaterializationJobStatus.SUCCEEDED)


class _Builder(LocalFeatureBuilder):  # type: ignore[misc]
    """Feast's own plan, but for its end."""

    def build_output_nodes(self, view: FeatureView, input_node: Any) -> Any:
        node = _OutputNode("output", self.dag_root.view, inputs=[input_node])
        self.nodes.append(node)
        return node


class _OutputNode(LocalOutputNode):  # type: ignore[misc]
    def execute(self, context: ExecutionContext) -> ArrowTableValue:
        table = self.get_single_table(context).data
        for part in _whole_owners(iter(table.to_batches(ROWS_AT_ONCE)), table.schema, _keys(self.feature_view)):
            _write(self.feature_view, part, context)
        output = ArrowTableValue(data=table)
        context.node_outputs[self.name] = output
        return output


def _is_plain(view: FeatureView) -> bool:
    """Whether a view's rows are those of its source, and go to the online store alone."""
    changes = ("feature_transformation", "aggregations", "filter", "enable_validation", "source_views", "offline")
    return view.batch_source is not None and not any(getattr(view, name, None) for name in changes)


def _stream(task: MaterializationTask, context: ExecutionContext, columns: ColumnInfo) -> None:
    view, source = task.feature_view, task.feature_view.batch_source
    asked = {
        "config": context.repo_config,
        "data_source": source,
        "join_key_columns": columns.join_keys,
        "feature_name_columns": columns.feature_cols,
        "timestamp_field": columns.ts_col,
        "created_timestamp_column": columns.created_ts_col,
        "start_date": task.start_time,
        "end_date": task.end_time,
    }
    everything, total = context.offline_store.pull_all_from_table_or_query(**asked), 0
    if isinstance(everything, IbisRetrievalJob):
        # Asked for twice, since duckdb would hold in memory what one query names twice.
        times = context.offline_store.pull_all_from_table_or_query(**{**asked, "feature_name_columns": []})
        newest = _newest(everything.table, times.table, columns)
        if sys.stderr.isatty():  # for the bar alone; a query after the next line would end its stream
            total = int(times.table.select(*columns.join_keys).distinct().count().execute())
        schema, batches = newest.schema().to_pyarrow(), iter(newest.to_pyarrow_batches(chunk_size=ROWS_AT_ONCE))
    else:
        if context.repo_config.materialization_config.pull_latest_features:  # fewer rows out of a warehouse
            everything = context.offline_store.pull_latest_from_table_or_query(**asked)
        table = _latest(everything, columns)
        schema, batches, total = table.schema, iter(table.to_batches(ROWS_AT_ONCE)), len(table)
    bar = Bar(total, view.name, "rows")
    names = [(columns.field_mapping or {}).get(name, name) for name in schema.names]
    for part in _whole_owners(batches, schema, [key for key in columns.join_keys if key != SLOT_KEY]):
        _write(view, part.rename_columns(names), context)
        bar.add(len(part))
    bar.end()


def _newest(table: ibis.Table, keys: ibis.Table, columns: ColumnInfo) -> ibis.Table:
    """The newest row of each key, of two at one time the one created later; in the order of the source.

    A join with the newest times of `keys`, the same rows with no features, where Feast sorts whole rows: so these are
    not held in memory, and the rows of an entity stay as close together as they were.
    """
    times = {"at": keys[columns.ts_col]}
    if columns.created_ts_col:
        created = keys[columns.created_ts_col]
        times |= {"is_known": created.notnull(), "created": created}
    of_key = keys.group_by(columns.join_keys) if columns.join_keys else keys
    newest = of_key.agg(**{NEWEST: ibis.struct(times).max()})
    same = {name: newest[name] for name in columns.join_keys} | {columns.ts_col: newest[NEWEST]["at"]}
    if columns.created_ts_col:
        same[columns.created_ts_col] = newest[NEWEST]["created"]
    of_each = newest.select(**same)
    return table.semi_join(of_each, [table[name].identical_to(of_each[name]) for name in same])


def _latest(job: RetrievalJob, columns: ColumnInfo) -> pa.Table:
    """The same of an offline store that gives a table; the rows of a key in the place of its first.

    Asked for all rows, for not every store knows the newest: Feast's dask one takes any of the newest time.
    """
    table = job.to_arrow()
    keys = [_codes(table[key]) for key in columns.join_keys]
    times = [_ticks(table[name]) for name in (columns.created_ts_col, columns.ts_col) if name]
    order = np.lexsort((*times, *keys[::-1])) if len(table) else np.zeros(0, np.int64)
    is_newest = np.append(np.zeros(max(len(order) - 1, 0), bool), np.ones(min(len(order), 1), bool))
    for key in keys:
        is_newest[:-1] |= key[order][1:] != key[order][:-1]
    return table.take(pa.array(order[is_newest]))


def _codes(column: pa.ChunkedArray) -> Int64Array:
    codes: Int64Array = column.combine_chunks().dictionary_encode("encode").indices.to_numpy().astype(np.int64)
    return codes


def _ticks(column: pa.ChunkedArray) -> Int64Array:
    times = column if pa.types.is_timestamp(column.type) else column.cast(pa.timestamp("us"))
    ticks: Int64Array = pc.fill_null(times.cast(pa.int64()), -(2**63)).to_numpy()
    return ticks


def _whole_owners(batches: Iterator[pa.RecordBatch], schema: pa.Schema, keys: list[str]) -> Iterator[pa.Table]:
    """Tables of some ROWS_AT_ONCE rows, such that rows of one owner that stand together are in one table."""
    ahead: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        is_last = np.ones(len(batch), bool)
        for key in keys:
            same = pc.equal(batch.column(key), batch.column(key)[-1])
            is_last &= pc.fill_null(same, False).to_numpy(zero_copy_only=False)
        others = np.flatnonzero(~is_last) if keys else np.arange(len(batch))
        begin = int(others[-1]) + 1 if len(others) else 0
        if begin:
            yield pa.Table.from_batches([*ahead, batch.slice(0, begin)], schema)
            ahead = []
        ahead += [batch.slice(begin)] if begin < len(batch) else []
    if ahead:
        yield pa.Table.from_batches(ahead, schema)


def _keys(view: FeatureView) -> list[str]:
    return [field.name for field in view.entity_columns if field.name not in (SLOT_KEY, DUMMY_ENTITY_ID)]


def _with_dummy(table: pa.Table) -> pa.Table:
    """With the key that Feast makes up for views without entities, and that some offline stores lack."""
    if DUMMY_ENTITY_ID in table.column_names:
        return table
    return table.append_column(DUMMY_ENTITY_ID, pa.array([DUMMY_ENTITY_VAL] * len(table), pa.string()))


def _write(view: FeatureView, table: pa.Table, context: ExecutionContext) -> None:
    """Write to the online store, and to the offline one where the view says so."""
    config, store = context.repo_config, context.online_store
    if not view.entities or view.entities == [DUMMY_ENTITY_NAME]:
        table = _with_dummy(table)
    if view.online and hasattr(store, "online_write_arrow"):
        store.online_write_arrow(config, view, table)
    elif view.online:
        kinds = {field.name: field.dtype.to_value_type() for field in view.entity_columns}
        # Feast converts the first batch of a table alone.
        for batch in table.combine_chunks().to_batches(config.materialization_config.online_write_batch_size):
            records = _convert_arrow_to_proto(batch, view, kinds)
            store.online_write_batch(config=config, table=view, data=records, progress=lambda _: None)
    if view.offline:
        context.offline_store.offline_write_batch(
            config=config, feature_view=view, table=table, progress=lambda _: None
        )
