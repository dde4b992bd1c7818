//! The command line of coea-engine.

fn main() -> std::process::ExitCode {
    coea_engine::cli::main()
}
