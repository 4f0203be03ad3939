//! `ringshard`: arguments, then configuration, then preflight, then run.

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use ringshard::cli::{self, AdminArgs, Asked, Cli, Command, DoctorArgs, ServeArgs, StatusArgs, Tune};
use ringshard::config::{self, Flag, Raw};
use ringshard::control::client;
use ringshard::exit::{Code, Failure, say};
use ringshard::{preflight, server, sys, tools};

/// Each shard's thread has a heap of its own.
#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let json = arguments.iter().any(|argument| argument == "--json");
    let done = match cli::parse(arguments) {
        Ok(Asked::Command(cli)) => run(cli),
        Ok(Asked::Text(text)) => say(json, &text, || serde_json::json!({ "text": text })),
        Err(failure) => Err(failure),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let json = cli.json;
    match cli.command {
        Command::Serve(args) => serve(&args, json),
        Command::Doctor(args) => doctor(&args, json),
        Command::CheckConfig(args) => {
            let read = config::load(Some(&args.file), &[], args.dev, &sys::cpus_allowed())?;
            say(json, &format!("{} is valid\n", args.file.display()), || read.to_json())
        }
        Command::DefaultConfig => {
            let text = config::default_config();
            say(json, &text, || serde_json::json!({ "toml": text }))
        }
        Command::Status(args) => status(&args, json),
        Command::Admin(args) => admin(&args, json),
        Command::Tune(Tune::Cuts(args)) => tools::cuts(&args, json),
        Command::Tune(Tune::Probe(args)) => tools::tune::probe(&args, json),
        Command::Tune(Tune::Show(args)) => tools::tune::show(&args, json),
        Command::Tune(Tune::Set(args)) => tools::tune::set(&args, json),
        Command::Tune(Tune::Watch(args)) => tools::tune::watch(&args, json),
        Command::Token(args) => tools::token(&args, json),
        Command::Frame(args) => tools::frame(&args, json),
        Command::Inspect(args) => tools::inspect(&args, json),
        Command::Sim(args) => tools::sim(&args, json),
        Command::Replay(args) => tools::replay(&args, json),
    }
}

fn serve(args: &ServeArgs, json: bool) -> Result<(), Failure> {
    let config = config::load(args.config.as_deref(), &args.flags(), args.dev, &sys::cpus_allowed())?;
    if args.print_config {
        return say(json, &config.print_config(), || config.to_json());
    }
    server::serve(config, args.no_tui)
}

fn plan(config: &config::Config) -> preflight::Plan {
    let node = &config.node;
    preflight::Plan { shards: node.shards, cpus: node.cpus.clone(), io: config.net.io, data: node.data.clone() }
}

fn doctor(args: &DoctorArgs, json: bool) -> Result<(), Failure> {
    let shards = args.shards.map(|n| Flag { key: "node.shards", name: "--shards", value: Raw::Integer(n.into()) });
    let io = args.io.clone().map(|io| Flag { key: "net.io", name: "--io", value: Raw::Text(io) });
    let flags: Vec<Flag> = shards.into_iter().chain(io).collect();
    let config = config::parse(None, &flags, true, &sys::cpus_allowed())?;
    let plan = preflight::Plan { data: args.data.clone(), ..plan(&config) };
    let findings = preflight::examine(&plan);
    let detail = serde_json::json!({ "findings": findings });
    match preflight::require(&findings) {
        Ok(()) => say(json, &preflight::table(&findings), || detail),
        Err(failure) if json => Err(Failure { detail: Some(detail), ..failure }),
        Err(_) => {
            say(false, &preflight::table(&findings), || detail)?;
            Err(Failure::new(Code::Machine, "what is marked FAIL keeps a node from starting"))
        }
    }
}

fn status(args: &StatusArgs, json: bool) -> Result<(), Failure> {
    let page = client::status(tools::control_of(args)?)?;
    say(json, &page.table(), || serde_json::to_value(&page).expect("a page is JSON"))
}

fn admin(args: &AdminArgs, json: bool) -> Result<(), Failure> {
    let verb = args.verb.to_possible_value().expect("no verb is hidden");
    let to = args.to.as_ref().map(std::path::absolute).transpose();
    let to = to.map_err(|error| Failure::new(Code::Usage, format!("--to: {error}")))?;
    let answer = client::admin(Path::new(&args.data), verb.get_name(), to)?;
    let mut text = answer.text.iter().map(|text| format!("{text}\n")).collect::<String>();
    for player in answer.players.iter().flatten() {
        let transport = if player.tcp { "tcp" } else { "udp" };
        let (id, entity, lane) = (player.client_id, player.entity, player.lane);
        text.push_str(&format!(
            "{id:>10} {entity:>20} lane {lane:>2} {transport} {:>9.1} {:>9.1}\n",
            player.x_m, player.y_m
        ));
    }
    say(json, &text, || serde_json::to_value(&answer).expect("an answer is JSON"))
}
