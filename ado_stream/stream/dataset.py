"""AdaptiveStreamingDataset: shards of many domains as one endless stream whose mixture may change at every step.

It holds the settings, the indexes, the cursors and the board of mixtures; batches are made by batch_pipeline.py.
Invariants: the batch of step s is a pure function of (shards, seed, global_batch_size, batch_seq_len, canonical_nodes,
cursors at s, mixture of s); the cursors, which count samples, and `state_dict` are those after the last step yielded.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
import xxhash
from torch.utils.data import IterableDataset

from ado_stream.errors import ConfigError, StorageError
from ado_stream.option_checks import MOST_ROWS, flag, instance, lag, one_of, optional, positive, text, threads, whole
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.batch_draw import SAMPLINGS, DrawSettings, StepDraw, draw_step
from ado_stream.stream.batch_pipeline import BatchPipeline, BatchSource, DrawnBatch, PipelineOptions
from ado_stream.stream.batch_rows import make_rows, with_rows_of
from ado_stream.stream.board import MixtureBoard
from ado_stream.stream.device_copies import DeviceCopies, TokenBatch, checked_device
from ado_stream.stream.domain import as_domains, prior_shares
from ado_stream.stream.fill_in_middle_rows import make_fill_in_middle
from ado_stream.stream.lookahead import LookaheadLimits
from ado_stream.stream.open_indexes import open_indexes
from ado_stream.stream.position import KEPT, KEPT_STEPS, Position
from ado_stream.stream.sample_order import UpcomingIds, make_order
from ado_stream.stream.shard_table import open_limit_bytes, row_tokens
from ado_stream.stream.slots import make_rank_slots
from ado_stream.stream.stream_state import StreamState, decode_state, encode_state
from ado_stream.stream.torch_workers import is_worker, refuse_pickling, refuse_second_split, refuse_state
from ado_stream.value_types import INTEGER_DTYPES, Floats, Ints, JsonMapping, JsonObject

_LOOKAHEAD_STEPS = 64
_FLIGHT_BYTES = 1 << 30
_UNLIMITED_BYTES = 1 << 62


class AdaptiveStreamingDataset(IterableDataset[TokenBatch]):
    """An endless stream of batches from several domains, in proportions that may change at every step.

    Args:
        domains: a Corpus, or a list of ado.Domain or Streaming's Stream objects.
        global_batch_size: rows a step over all ranks; a multiple of canonical_nodes and of the number of ranks.
        seed: of order and draw.
        canonical_nodes: C lanes; a node that serves whole lanes reads only their shards. Part of a run's identity.
        mixture_lag: the mixture published after step s is that of step s + 1 + lag; steps 0 .. lag take the prior.
            None: a step without a mixture of its own takes that of the step before.
        sampling: "systematic" (each count within one of B p at every step) or "multinomial".
        cache_limit: bytes of cached shards on this machine; None: the whole disk.
        predownload: samples of the mixture's future to keep on the local disk; None: 64 steps.
        replication: this many consecutive ranks get the same samples (tensor or context parallel groups).
        shuffle: "blocks", or one of Streaming's py1e, py1br, py1s, py2s, naive.
        token_column, token_dtype, seq_len: of data that `prepare` did not write: MDS column, type, T of flat files.
        batch_seq_len: T of the batches, a multiple or a divisor of the samples': a row is then several samples of one
            domain, consecutive in its order, or a sample is several rows, one after the other. None: a row is a sample.
        positions, end_token: True adds `positions` to each batch, (b, T) int64: the place of every input token in its
            document, of which each ends with `end_token`; None: a Corpus' own.
        fim_tokens: ids of the marks prefix, suffix, middle, where a domain has fill-in-the-middle; None: a Corpus' own.
        vocab_size: tokens outside [0, vocab_size) are an error when a batch is read; None: not checked.
        timeout_s: longest wait for a mixture, a shard or a batch.
        retry: attempts, deadlines and pauses of downloads; None: storage's RetryPolicy().
        rank, world_size: of this process; None: from torch.distributed when it runs, else 0 of 1.

    Iteration yields dicts (TokenBatch) of global_batch_size / ranks rows; targets where they are not in tokens[:, 1:].
    Raises ConfigError for settings that cannot work, naming the nearest that do.
    """

    def __init__(
        self,
        domains: Iterable[object],
        global_batch_size: int = 256,
        seed: int = 17,
        canonical_nodes: int = 1,
        mixture_lag: int | None = 8,
        sampling: str = "systematic",
        cache_limit: int | None = None,
        predownload: int | None = None,
        replication: int = 1,
        *,
        shuffle: str = "blocks",
        token_column: str = "tokens",
        token_dtype: str | None = None,
        seq_len: int | None = None,
        batch_seq_len: int | None = None,
        positions: bool = False,
        end_token: int | None = None,
        fim_tokens: Sequence[int] | None = None,
        vocab_size: int | None = None,
        timeout_s: float = 900.0,
        retry: RetryPolicy | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        super().__init__()
        seq_len = optional(whole, "seq_len", getattr(domains, "seq_len", None) if seq_len is None else seq_len, 1)
        self.domains = as_domains(domains)
        self.padding_token: int | None = getattr(domains, "padding_token", None)  # of a Corpus, as the next two
        end_token = getattr(domains, "end_token", None) if end_token is None else end_token
        if positions and end_token is None:
            raise ConfigError("positions=True: give end_token=, the token that ends a document (tokenizer.end_id).")
        self._end_token = end_token if positions else None
        fim_tokens = getattr(domains, "fim_tokens", None) if fim_tokens is None else fim_tokens
        global_batch_size = whole("global_batch_size", global_batch_size, 1, MOST_ROWS)
        canonical_nodes, seed = whole("canonical_nodes", canonical_nodes, 1), whole("seed", seed, -math.inf, math.inf)
        mixture_lag = optional(lag, "mixture_lag", mixture_lag)
        sampling, shuffle = one_of("sampling", sampling, SAMPLINGS), text("shuffle", shuffle)
        cache_limit = optional(whole, "cache_limit", cache_limit, 1)
        predownload = optional(whole, "predownload", predownload, 1)
        token_column = text("token_column", token_column)
        token_dtype = optional(one_of, "token_dtype", token_dtype, INTEGER_DTYPES)
        retry = optional(instance, "retry", retry, RetryPolicy)
        self.rank_slots = make_rank_slots(rank, world_size, replication)
        self.settings = DrawSettings(global_batch_size, canonical_nodes, seed, sampling)
        self.rank_slots.slots(self.settings)  # refuses a batch that ranks cannot share, before anything is opened
        batch_seq_len = optional(whole, "batch_seq_len", batch_seq_len, 1)
        self.mixture_lag, self._shuffle, self.timeout_s = mixture_lag, shuffle, positive("timeout_s", timeout_s)
        self._indexes = indexes = open_indexes(self.domains, token_column, token_dtype, retry, seq_len)
        orders = [make_order(index.name, index.samples_S, seed, canonical_nodes, shuffle) for index in indexes]
        self._cache = NodeCache(cache_limit, retry)
        self._cache.check_fits(index.spec(int(index.raw_bytes_S.argmax())) for index in indexes)
        if batch_seq_len is not None:
            self.settings = with_rows_of(batch_seq_len, self.seq_len, self.settings)
        slots = self.rank_slots.slots(self.settings)
        self._cache_limit, self._vocab_size = cache_limit, optional(whole, "vocab_size", vocab_size, 1)
        self._predownload = predownload or _LOOKAHEAD_STEPS * self.settings.num_samples
        self._board = MixtureBoard(prior_shares(self.domains, self.num_samples), mixture_lag)
        self.fim = make_fill_in_middle({each.name: each.fim for each in self.domains}, seed, fim_tokens, end_token)
        self._fims = {} if self.fim is None else self.fim.state()
        self._source = BatchSource(indexes, self._cache, orders, self._board, self.settings, slots, self.fim)
        self._at = Position(0, np.zeros((len(indexes), canonical_nodes), np.int64))
        self._pipeline: BatchPipeline | None = None
        self._is_closed = False
        self._copies: DeviceCopies | None = None
        self._ahead: DrawnBatch | None = None  # being copied to the device, not yielded yet

    def __getstate__(self) -> NoReturn:
        refuse_pickling(type(self).__name__)

    def __repr__(self) -> str:
        domains = f"1 domain ({self.names[0]})" if len(self.names) == 1 else f"{len(self.names)} domains"
        return (
            f"{type(self).__name__}({domains}, {self.num_samples.sum()} samples, "
            f"global_batch_size={self.settings.global_batch_size}, seed={self.settings.seed}, "
            f"mixture_lag={self.mixture_lag}, at step {self.step})"
        )

    # Data --------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """The domains' names, in the order of every array over domains."""
        return [domain.name for domain in self.domains]

    @property
    def num_samples(self) -> Ints:
        """(K,) int64: samples of each domain."""
        return np.array([index.num_samples for index in self._indexes], np.int64)

    @property
    def prior(self) -> Floats:
        """(K,) float64, sums to 1: the domains' priors, or their shares of the tokens."""
        return self._board.prior_K

    num_samples_K, prior_K = num_samples, prior  # aliases

    @cached_property
    def seq_len(self) -> int:
        """T of the samples, which all counts are in: a sample has T + 1 tokens, inputs and targets shifted by one."""
        return row_tokens(self._indexes, self._cache) - 1

    @property
    def batch_seq_len(self) -> int:
        """T of the batches' rows."""
        return self.seq_len * self.settings.samples_per_row // self.settings.rows_per_sample

    # Mixture ------------------------------------------------------------------------------------------------------

    def publish(self, step: int, mixture: Floats) -> None:
        """Sets the mixture of `step`: (K,) probabilities; also in the worker process of a DataLoader.

        The same one twice is harmless. Raises PolicyError for an array that is not a mixture, and for another mixture
        when the step was already drawn.
        """
        self._board.publish(step, mixture)

    def mixture(self, step: int) -> Floats:
        """(K,) float64: the mixture of `step`. Raises ConfigError when it is not published yet, or no longer kept."""
        self._check_read_here()
        if (kept := self._at.kept_draw(step)) is not None:
            return kept.mixture_K
        mixture_K = self._board.known(step) if whole("step", step) >= self.step else None
        if mixture_K is None:
            raise ConfigError(f"the mixture of step {step} is not available at step {self.step}: {KEPT}")
        return mixture_K

    @property
    def mixture_in_force(self) -> Floats:
        """(K,) float64: the mixture of the last batch yielded; before any, of the first."""
        self._check_read_here()
        if self._at.kept:
            return self._at.kept[-1].mixture_K
        mixture_K = self._board.known(self.step)
        return self.prior if mixture_K is None else mixture_K

    # Audit --------------------------------------------------------------------------------------------------------

    def sample_counts(self, step: int) -> Ints:
        """(K,) int64: samples of each domain in step `step`'s global batch."""
        return np.bincount(self._draw(step).domain_B, minlength=len(self.domains))

    def sample_ids(self, step: int) -> Ints:
        """(B,) int64: the ids of the samples in step `step`'s global batch, slot by slot, a row's one after the other.

        An id is the sample's number within its domain plus the number of samples of all domains before it. Available
        for the last 64 steps yielded, and for steps ahead whose mixtures are published.
        """
        draw = self._draw(step)
        offset_K = np.cumsum(self.num_samples) - self.num_samples
        return offset_K[draw.domain_B] + self._ids.at(draw.domain_B, self._source.lane_B, draw.position_B)

    @cached_property
    def _ids(self) -> UpcomingIds:
        return UpcomingIds(self._source.orders, range(self.settings.num_lanes))

    def cursor_digest(self) -> int:
        """A hash of the cursors, equal on all ranks that read one global order."""
        return xxhash.xxh64_intdigest(self._at.cursors_KC.tobytes())

    def _draw(self, step: int) -> StepDraw:
        self._check_read_here()
        return self._at.draw(self.settings, step, self.mixture)

    def _check_read_here(self) -> None:
        if self._board.is_read_elsewhere:
            refuse_state()

    # Iteration ----------------------------------------------------------------------------------------------------

    def skip(self, mixture: Floats) -> None:
        """Advances one step as if a batch of this mixture had been yielded, without reading it."""
        self.publish(self.step, mixture)
        cursors_KC = self._at.cursors_KC.copy()
        draw_step(self.settings, self.step, self.mixture(self.step), cursors_KC)
        self.restore((self.step + 1, cursors_KC, self._board.pending(self.step + 1)))

    def check_prefetch(self, prefetch: int) -> None:
        """Raises ConfigError when batches made `prefetch` steps ahead would wait for mixtures not published yet."""
        prefetch = lag("prefetch", prefetch)
        if self.mixture_lag is not None and self.mixture_lag < prefetch:
            raise ConfigError(
                f"mixture_lag {self.mixture_lag} is less than prefetch {prefetch}: batches made ahead would wait for "
                f"mixtures. Set mixture_lag >= {prefetch}, or prefetch <= {self.mixture_lag}."
            )

    def start(
        self, prefetch: int, io_threads: int, pin_memory: bool = False, device: torch.device | str | None = None
    ) -> None:
        """Starts making batches from the current step; a running pipeline is stopped first.

        device: batches are copied there, one ahead; None leaves them on the host.
        """
        self.rank_slots.check_group()
        self.check_prefetch(prefetch)
        io_threads, pin_memory = threads("io_threads", io_threads), flag("pin_memory", pin_memory)
        device = checked_device(device)
        limits = LookaheadLimits(
            samples=self._predownload,
            flight_bytes=_FLIGHT_BYTES,
            unopened_bytes=self._cache_limit // 4 if self._cache_limit else _UNLIMITED_BYTES,
            threads=io_threads,
            timeout_s=self.timeout_s,
        )
        open_bytes = open_limit_bytes(self._indexes, self._cache_limit)
        options = PipelineOptions(prefetch, pin_memory, self.timeout_s, limits, self._vocab_size, open_bytes)
        self._stop()
        self._board.open()
        self._copies = None if device is None else DeviceCopies(device, pin_memory)
        self._is_closed = False
        self._pipeline = BatchPipeline(self._source, self.step, self._at.cursors_KC, options)

    def next_batch(self) -> TokenBatch:
        """The next step's batch of this rank; `start` must have been called."""
        pipeline = self._pipeline
        if pipeline is None:
            raise StorageError("the stream is closed; start() first.")
        pipeline.check_process()
        self._board.check_publisher(self.step)
        try:
            draw, batch = self._ahead or self._begin_copy(pipeline.next())
            self._ahead = None
            if self._copies is not None:
                batch = self._copies.end(batch)
                following = pipeline.next_if_ready()
                self._ahead = None if following is None else self._begin_copy(following)
            make_rows(batch, self.settings, self._end_token, self.padding_token)
            self._board.forget(self.step + 1 - KEPT_STEPS)
            # Here alone, not when a batch is made or copied: the state is that of the step handed out.
            self._at = self._at.after(draw)
        except BaseException:  # KeyboardInterrupt too: the pipeline may have moved on, and this step may not be lost
            self._stop()  # the next call makes this step again, should the cause be gone
            raise
        return batch

    @property
    def running(self) -> bool:
        """Whether a pipeline is making batches."""
        return self._pipeline is not None

    @property
    def step(self) -> int:
        """The step that is yielded next."""
        return self._at.step

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches from the current step on, without end. In a DataLoader: batch_size=None, num_workers 0 or 1.

        `close` ends it, a state that is loaded or an error does not: the next call goes on.
        """
        refuse_second_split(self.rank_slots.world_size)
        if is_worker():
            self._stop()  # a fork has the pipeline's objects, but not its threads
        self._is_closed = False
        return iter(self._next_unless_closed, None)  # a generator that has raised would be at its end

    def _next_unless_closed(self) -> TokenBatch | None:
        if self._is_closed:
            return None
        if not self.running:
            self.start(prefetch=2 if self.mixture_lag is None else min(2, self.mixture_lag), io_threads=4)
        return self.next_batch()

    def close(self) -> None:
        """Stops the pipeline's threads and ends passes; iterating again continues at the current step."""
        self._is_closed = True
        self._stop()

    def _stop(self) -> None:
        if (pipeline := self._pipeline) is not None:  # of several threads that close, another may set it to None
            pipeline.close()
            self._pipeline = self._ahead = None
            self._board.close()

    def statistics(self) -> JsonObject:
        """Samples, bytes, cache hits, stalls and their seconds, in total and per domain; "cache": that of the cache."""
        running = self._pipeline.statistics.summary() if self._pipeline is not None else {}
        return {**running, "cache": self._cache.statistics()}

    def _begin_copy(self, drawn: DrawnBatch) -> DrawnBatch:
        """The draw and the batch, its copy to the device started."""
        draw, batch = drawn
        return draw, batch if self._copies is None else self._copies.begin(batch)

    # State --------------------------------------------------------------------------------------------------------

    @property
    def _identity(self) -> JsonObject:
        """What the order and the draw depend on besides the data."""
        draw = self.settings
        return {
            "seed": draw.seed,
            "global_batch_size": draw.global_batch_size,
            "batch_seq_len": None if draw.samples_per_row == draw.rows_per_sample else self.batch_seq_len,
            "canonical_nodes": draw.num_lanes,
            "mixture_lag": self.mixture_lag,
            "sampling": draw.sampling,
            "shuffle": self._shuffle,
        }

    def state_dict(self) -> JsonObject:
        """JSON-able, as of the last step yielded, not of batches made ahead; the same on every rank.

        Raises ConfigError while a DataLoader's worker reads: the state is in that process.
        """
        self._check_read_here()
        at = self._at
        pending = self._board.pending(at.step)
        return encode_state(self._identity, self._indexes, self._fims, at.step, at.cursors_KC, pending)

    def load_state_dict(self, state: JsonMapping) -> None:
        """Continues from `state`, saved with any number of ranks. Raises ResumeError (see stream_state.py)."""
        self.restore(self.decode(state))

    def decode(self, state: JsonMapping) -> StreamState:
        """What `restore` takes, checked; changes nothing. Raises as `load_state_dict`."""
        return decode_state(state, self._identity, self._indexes, self._fims)

    def restore(self, decoded: StreamState) -> None:
        """Continues from what `decode` returned."""
        self._stop()  # its thread reads the board, which is reset with no reader
        step, cursors_KC, pending = decoded
        self._at = Position(step, cursors_KC)
        self._board.load(step, pending)
