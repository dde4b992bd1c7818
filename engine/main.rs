//! The `coea-engine` command.

fn main() -> std::process::ExitCode {
    coea_engine::cli::main()
}
