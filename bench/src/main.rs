//! `ringshard-bench`: see its library.

/// The heap of the product, counted where a bench asks for it.
#[global_allocator]
static HEAP: ringshard_bench::CountingHeap = ringshard_bench::CountingHeap;

fn main() -> std::process::ExitCode {
    ringshard_bench::main()
}
