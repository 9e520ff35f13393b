"""All questions about the stream in one command: `python -m benchmarks.bench_stream`."""

from benchmarks import (
    bench_stream_draw,
    bench_stream_local,
    bench_stream_remote,
    bench_stream_repeats,
    bench_stream_start,
)

if __name__ == "__main__":
    for question in (
        bench_stream_draw,
        bench_stream_repeats,
        bench_stream_start,
        bench_stream_local,
        bench_stream_remote,
    ):
        question.main()
