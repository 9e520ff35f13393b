"""The compiled arithmetic of order and draw: integer hashes, a permutation, and the loops over slots and positions.

All in one file on purpose: Numba's cache on disk detects changes of the file itself but not of functions that it calls
in other files, and stale code on one node would draw another order there.

Integer arithmetic only, so the numbers are the same on every machine, NumPy version and thread. `mix64` is the
finaliser of SplitMix64 (Steele, Lea, Flood 2014, variant 13 of Stafford). `permute` is an alternating Feistel network
with cycle walking (Black, Rogaway 2002): a bijection of [0, n) that is evaluated one element at a time, so the order of
10^9 samples costs no memory. It shuffles; it does not encrypt.
"""

import numpy as np
from numba import njit

from ado_stream.value_types import Array, Floats, Ints, Words

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_PAIRS = 4  # of rounds, one for each half
_PAIRS_SMALL = 16  # halves of a bit or two need more rounds until all permutations are equally likely


@njit(cache=True, nogil=True, inline="always")
def mix64(value: np.uint64) -> np.uint64:
    """A bijection of 64-bit words in which every output bit depends on every input bit."""
    value = (value ^ (value >> np.uint64(30))) * _MULTIPLIER_1
    value = (value ^ (value >> np.uint64(27))) * _MULTIPLIER_2
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True, inline="always")
def word(key: np.uint64, counter: np.uint64) -> np.uint64:
    """The 64-bit word number `counter` of the stream `key`."""
    return mix64(mix64(counter * _GOLDEN + _GOLDEN) ^ key)


@njit(cache=True, nogil=True, inline="always")
def uniform(key: np.uint64, counter: np.uint64) -> np.float64:
    """The float64 number `counter` of the stream `key`, in [0, 1): 53 random bits."""
    return np.float64(word(key, counter) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def permute(index: int, size: int, key: np.uint64) -> np.int64:
    """The image of `index` in [0, size) under the permutation `key`.

    The network permutes [0, 2^bits), the least power of two (but 4) that holds `size`; a value outside [0, size) is put
    through again (cycle walking), which keeps it a bijection of [0, size) in fewer than two passes on average.
    """
    if size <= 1:
        return np.int64(0)
    bits = 2
    while (1 << bits) < size:
        bits += 1
    pairs = _PAIRS if bits > 6 else _PAIRS_SMALL
    low_bits = np.uint64(bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << (np.uint64(bits) - low_bits)) - np.uint64(1)
    value = np.uint64(index)
    while True:
        low = value & low_mask
        high = value >> low_bits
        for pair in range(pairs):  # each half takes a keyed hash of the other; the round number is in the low 5 bits
            low ^= mix64(((high << np.uint64(5)) | np.uint64(2 * pair)) * _GOLDEN + key) & low_mask
            high ^= mix64(((low << np.uint64(5)) | np.uint64(2 * pair + 1)) * _GOLDEN + key) & high_mask
        value = (high << low_bits) | low
        if value < np.uint64(size):
            return np.int64(value)


@njit(cache=True, nogil=True)
def words(key: np.uint64, count: int) -> Words:
    """The first `count` words of the stream `key`, uint64."""
    out = np.empty(count, np.uint64)
    for index in range(count):
        out[index] = word(key, np.uint64(index))
    return out


@njit(cache=True, nogil=True)
def systematic(mixture_K: Floats, u: np.float64, key: np.uint64, domain_B: Array) -> None:
    """Fills `domain_B`: point j takes the domain whose interval of the cumulative mixture holds (u + j) / B.

    The points are then shuffled over the slots (Durstenfeld 1964).
    """
    num_slots = domain_B.size
    total = 0.0
    last = 0
    for k in range(mixture_K.size):
        total += mixture_K[k]
        if mixture_K[k] > 0.0:
            last = k
    cumulative = 0.0
    start = 0
    for k in range(last + 1):
        cumulative += mixture_K[k]
        # the first point at or beyond the interval's end; the last domain with a share takes what rounding left over
        end = num_slots if k == last else min(num_slots, int(np.ceil(num_slots * (cumulative / total) - u)))
        for j in range(start, end):
            domain_B[j] = k
        start = max(start, end)
    for j in range(num_slots - 1, 0, -1):
        # The remainder's bias is (j + 1) / 2^64: none that any number of steps could show.
        other = np.int64(word(key, np.uint64(j)) % np.uint64(j + 1))
        domain_B[j], domain_B[other] = domain_B[other], domain_B[j]


@njit(cache=True, nogil=True)
def multinomial(mixture_K: Floats, key: np.uint64, domain_B: Array) -> None:
    """Fills `domain_B`, each slot on its own."""
    cumulative_K = np.cumsum(mixture_K)
    total = cumulative_K[-1]
    last = 0
    for k in range(mixture_K.size):
        if mixture_K[k] > 0.0:
            last = k
    for slot in range(domain_B.size):
        point = uniform(key, np.uint64(slot)) * total
        # A point that rounds up to the total is past the last interval; domains after `last` have no share.
        domain_B[slot] = min(last, np.searchsorted(cumulative_K, point, side="right"))


@njit(cache=True, nogil=True)
def advance(domain_B: Array, cursors_KC: Ints, position_B: Ints) -> None:
    """Gives every slot the next position of its domain in its lane."""
    num_lanes = cursors_KC.shape[1]
    num_slots = domain_B.size
    for slot in range(num_slots):
        k = domain_B[slot]
        lane = slot * num_lanes // num_slots
        position_B[slot] = cursors_KC[k, lane]
        cursors_KC[k, lane] += 1


@njit(cache=True, nogil=True)
def short_groups(cursor_KL: Ints, wanted_K: Ints, until_KL: Ints) -> Ints:
    """The groups (domain * lanes + lane) with less than three quarters of `wanted_K` requested beyond their cursors.

    until_KL: the position up to which each group is requested; raised to the cursor where that is further.
    """
    # Three quarters and not all of it: a request then covers a quarter of what is wanted, and most steps request none.
    short = np.empty(cursor_KL.size, np.int64)
    count = 0
    for k in range(cursor_KL.shape[0]):
        least = wanted_K[k] - wanted_K[k] // 4
        for lane in range(cursor_KL.shape[1]):
            until_KL[k, lane] = max(until_KL[k, lane], cursor_KL[k, lane])
            if until_KL[k, lane] - cursor_KL[k, lane] < least:
                short[count] = k * cursor_KL.shape[1] + lane
                count += 1
    return short[:count]


@njit(cache=True, nogil=True)
def group_pieces(start: Ints, block_samples: int) -> Ints:
    """First pieces of the blocks, and the number of pieces at the end; `start`: positions where pieces begin."""
    pieces = start.size - 1
    bounds = np.empty(pieces + 1, np.int64)
    count = 0
    piece = 0
    target = 0
    while piece < pieces:
        bounds[count] = piece
        count += 1
        begin = start[piece]
        piece += 1
        while piece < pieces and start[piece] - begin < target:
            piece += 1
        # blocks double from a single piece on, up to block_samples: the first batch waits for one shard
        target = min(block_samples, max(2 * target, 2 * (start[piece] - begin)))
    bounds[count] = pieces
    return bounds[: count + 1].copy()


# Columns of the table of groups: what is read of a group together lies in one line of the processor's cache.
BEGIN, END, FIRST_SHARD, AT, NUM_PIECES, EPOCH, NUM_BLOCKS, KEY = range(8)
PIECE_ID, PIECE_START, BLOCK = range(3)  # columns of a plan


@njit(cache=True, nogil=True)
def plan_epochs(
    group_M: Ints,
    pieces_key_M: Words,
    start_S: Ints,
    first_id_S: Ints,
    block_samples: int,
    table_GX: Ints,
    plan_PX: Ints,
) -> None:
    """Writes the plan of an epoch of each group in `group_M`; see PlannedIds in sample_order.py."""
    for m in range(group_M.size):
        row = table_GX[group_M[m]]
        at, pieces = row[AT], row[NUM_PIECES]
        order = np.argsort(words(pieces_key_M[m], pieces), kind="mergesort")  # stable
        position = 0
        for number in range(pieces):
            shard = row[FIRST_SHARD] + order[number]
            start = max(start_S[shard], row[BEGIN])
            plan_PX[at + number, PIECE_ID] = first_id_S[shard] + start - start_S[shard]
            plan_PX[at + number, PIECE_START] = position
            position += min(start_S[shard + 1], row[END]) - start
        plan_PX[at + pieces, PIECE_START] = position
        block = group_pieces(plan_PX[at : at + pieces + 1, PIECE_START].copy(), block_samples)
        plan_PX[at : at + block.size, BLOCK] = block
        row[NUM_BLOCKS] = block.size - 1


@njit(cache=True, nogil=True)
def planned_ids(todo_M: Ints, group_N: Ints, position_N: Ints, table_GX: Ints, plan_PX: Ints, id_N: Ints) -> Ints:
    """Fills `id_N` at the slots in `todo_M` whose groups have the plan of their epoch; returns the other slots."""
    left = np.empty(todo_M.size, np.int64)
    count = 0
    for n in todo_M:
        row = table_GX[group_N[n]]
        share = row[END] - row[BEGIN]
        epoch = position_N[n] // share
        if epoch != row[EPOCH]:
            left[count] = n
            count += 1
            continue
        plan = plan_PX[row[AT] : row[AT] + row[NUM_PIECES] + 1]
        position = position_N[n] - epoch * share
        b, after = 0, row[NUM_BLOCKS]  # the block that holds `position`, by bisection
        while after - b > 1:
            middle = (b + after) // 2
            if plan[plan[middle, BLOCK], PIECE_START] <= position:
                b = middle
            else:
                after = middle
        piece, end = plan[b, BLOCK], plan[b + 1, BLOCK]
        low = plan[piece, PIECE_START]
        size = plan[end, PIECE_START] - low
        # Permutes within the block, with a key of its own; what is permuted are positions, across the block's pieces.
        mixed = low + permute(position - low, size, np.uint64(row[KEY]) + np.uint64(b))
        # the piece of the block that holds `mixed`, by bisection
        while end - piece > 1:
            middle = (piece + end) // 2
            if plan[middle, PIECE_START] <= mixed:
                piece = middle
            else:
                end = middle
        id_N[n] = plan[piece, PIECE_ID] + mixed - plan[piece, PIECE_START]
    return left[:count]


@njit(cache=True, nogil=True)
def fill_in_middle(
    tokens_NT: Ints, domain_N: Array, id_N: Ints, key_K: Words, rate_K: Floats, spm_rate_K: Floats, special: Ints
) -> None:
    """Reorders documents of rows in place (fill_in_middle_rows.py). special: prefix, suffix, middle and end token."""
    num_rows, num_tokens = tokens_NT.shape
    row_T = np.empty(num_tokens, np.int64)
    for n in range(num_rows):
        rate, spm_rate = rate_K[domain_N[n]], spm_rate_K[domain_N[n]]
        if rate == 0.0:
            continue
        key = word(key_K[domain_N[n]], np.uint64(id_N[n]))
        row_T[:] = tokens_NT[n]
        out_T = tokens_NT[n]
        begin = at = 0  # of a document: where it was, where it goes
        counter = np.uint64(0)
        while at < num_tokens:
            end = begin
            while end < num_tokens and row_T[end] != special[3]:
                end += 1
            past, room = min(end + 1, num_tokens), num_tokens - at
            if past - begin + 3 > room:  # should it be chosen, it is cut to what the marks leave
                end, ends = min(end, begin + room - 3), 0
            else:
                ends = past - end
            # Four numbers a document, used or not: a document's reordering does not depend on those before it.
            chosen = uniform(key, counter) < rate
            is_spm = uniform(key, counter + np.uint64(1)) < spm_rate
            length = end - begin
            cut_a = begin + int(uniform(key, counter + np.uint64(2)) * (length + 1))
            cut_b = begin + int(uniform(key, counter + np.uint64(3)) * (length + 1))
            counter += np.uint64(4)
            if chosen and length > 0:
                at = _reorder(row_T, out_T, at, (begin, min(cut_a, cut_b), max(cut_a, cut_b), end), is_spm, special)
                if ends:
                    out_T[at] = special[3]
                    at += 1
            else:
                num_kept = min(past - begin, room)
                out_T[at : at + num_kept] = row_T[begin : begin + num_kept]
                at += num_kept
            begin = past


@njit(cache=True, nogil=True)
def _reorder(row_T: Ints, out_T: Ints, at: int, cuts: tuple[int, int, int, int], is_spm: bool, special: Ints) -> int:
    """Writes marks and parts of [cuts[0], cuts[3]) from `at` on; where they end."""
    begin, first, second, end = cuts
    prefix, middle, suffix = row_T[begin:first], row_T[first:second], row_T[second:end]
    out_T[at] = special[0]
    at += 1
    if not is_spm:
        out_T[at : at + prefix.size] = prefix
        at += prefix.size
    out_T[at] = special[1]
    at += 1
    out_T[at : at + suffix.size] = suffix
    at += suffix.size
    out_T[at] = special[2]
    at += 1
    if is_spm:
        out_T[at : at + prefix.size] = prefix
        at += prefix.size
    out_T[at : at + middle.size] = middle
    return at + middle.size
