//! `toprope qualify`: whether a device is fit, and why.

mod asked; // what the user will run
mod between; // collectives between chips
mod cases_file; // a list of somebody's own calls
mod outputs; // for machines
mod proofs; // programs and batches of the proofs
mod remedy; // changes as lines and recipes
mod shard; // one rank's share of a model
mod still; // whether an earlier verdict stands
mod table; // for terminals

use crate::command::Qualify;
use crate::exit::{Exit, Failure, OrExit};
use crate::report;
use crate::verb::oracle::oracle;
use crate::verb::recipe;
use asked::{Asked, asked};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use toprope_devices::{OpenOptions, open};
use toprope_program::{DType, Device};
use toprope_qualify::bench::Opener;
use toprope_qualify::budget::HOURS;
use toprope_qualify::dies::{Die, Standing, Vote, vote};
use toprope_qualify::shapes::for_speed;
use toprope_qualify::sisters;
use toprope_qualify::speed::Speed;
use toprope_qualify::verdict::Change;
use toprope_qualify::{
    Alternative, Bench, Deadline, Qualification, QualifyError, Request, Tier, Verdict, qualify,
};
use toprope_world::{RealWorld, World, write_durably};

/// Operators that only checks take: a guard puts them in.
const CHECKS: [&str; 7] =
    ["product_check", "compare", "attention_check", "loss_check", "adamw_digest", "verify", "digest"];

/// Qualifies.
pub fn run(arguments: &Qualify, json: bool) -> Result<Exit, Failure> {
    let world = RealWorld::new();
    if arguments.collectives {
        return between::run(&world, arguments, json);
    }
    if let Some(earlier) = &arguments.still {
        let device = arguments.device.first().map(String::as_str);
        return still::run(earlier, device, &options(arguments), json);
    }
    let tier = tier(arguments)?;
    let expected = expected(arguments)?;
    if let Some(path) = arguments.write.as_deref().filter(|path| path.exists()) {
        let message = format!("{} is there already; nothing is overwritten", path.display());
        return Err(Failure::new(Exit::Run, message));
    }
    // What is wrong with the request is told before anything is measured.
    let asked = asked(&world, arguments)?;
    let named = !arguments.device.is_empty();
    let (names, tier) = match named {
        true => (arguments.device.clone(), tier),
        // Without arguments: what is there, and a minute of the processor.
        false => (vec!["cpu".to_string()], if arguments.hours.is_some() { tier } else { Tier::Quick }),
    };
    if !named {
        list(arguments);
    }
    let time = |time: Duration| crate::progress::duration(time.as_secs_f64());
    let own =
        asked.model.as_ref().map(|_| format!(", and {} for the model's own weights", time(tier.own_model())));
    let (tier_name, own) = (tier.name(), own.unwrap_or_default());
    println!("qualify {}: {tier_name} tier, at most {}{own}", names.join(", "), time(tier.total()));
    let session = Session { arguments, world: &world, tier };
    let names = session.each(&names)?;
    let (name, poll) = match names.as_slice() {
        [one] => (one.clone(), None),
        several => session.poll(several, &asked)?,
    };
    let apart = poll.as_ref().and_then(|poll| poll.bad().into_iter().find(|die| die.name == name).cloned());
    let timed = poll.as_ref().and_then(|poll| poll.paces.iter().find(|pace| pace.name == name));
    let timed = timed.map(|pace| pace.speed.clone());
    let qualification = session.one(&name, &asked, apart, timed)?;
    let verdict = qualification.ruling.verdict;
    println!("\n{}", table::operators(&qualification));
    print!("{}", table::verdict(&qualification, &name));
    if let Some(poll) = &poll {
        println!("{}", table::wrapped("dies: ", &poll.told()));
    }
    session.write(&name, &qualification, &asked, poll.as_ref())?;
    if !named {
        let more = "toprope qualify --device NAME, one of the above; with --for a recipe, a model, a config.json or cases.jsonl your own shapes come first";
        println!("\n{}", table::wrapped("to see more: ", more));
    }
    if json {
        println!("{}", outputs::json(&qualification, &name, poll.as_ref()));
    }
    Ok(match expected {
        Some(wanted) if verdict.serves(wanted) => Exit::Done,
        _ => exit_of(verdict),
    })
}

fn exit_of(verdict: Verdict) -> Exit {
    match verdict {
        Verdict::Train => Exit::Done,
        Verdict::TrainWith => Exit::TrainWith,
        Verdict::Infer => Exit::Infer,
        Verdict::Unfit => Exit::Unfit,
        Verdict::Inconclusive => Exit::Inconclusive,
    }
}

fn tier(arguments: &Qualify) -> Result<Tier, Failure> {
    match arguments.hours {
        None if arguments.quick => Ok(Tier::Quick),
        None => Ok(Tier::Default),
        Some(hours) if hours.is_finite() && HOURS.contains(&hours) => Ok(Tier::Hours(hours)),
        Some(hours) => Err(Failure::new(
            Exit::Usage,
            format!(
                "--hours {hours}: from {} to {} hours can be asked for\nhint: --quick takes a minute, and without either it is ten",
                HOURS.start(),
                HOURS.end()
            ),
        )),
    }
}

fn expected(arguments: &Qualify) -> Result<Option<Verdict>, Failure> {
    let Some(word) = &arguments.expect else { return Ok(None) };
    let plain = |verdict: &Verdict| verdict.name().replace(' ', "-");
    Verdict::ALL.into_iter().find(|verdict| plain(verdict) == *word).map(Some).ok_or_else(|| {
        let names: Vec<String> = Verdict::ALL.iter().map(plain).collect();
        Failure::new(Exit::Usage, format!("--expect {word}: a verdict is one of {}", names.join(", ")))
    })
}

fn options(arguments: &Qualify) -> OpenOptions {
    OpenOptions { threads: arguments.threads, python: arguments.python.clone(), ..OpenOptions::default() }
}

/// What is there, and how to look at it.
fn list(arguments: &Qualify) {
    println!("what is there:");
    let show = |name: &str, text: &str| println!("{}", table::wrapped(&format!("  {name:<12} "), text));
    for listed in toprope_devices::list() {
        match open(listed.name, &options(arguments)) {
            Ok(device) => {
                let d = device.describe();
                show(listed.name, &format!("{}, level {}", d.hardware, d.level));
            }
            Err(error) => show(listed.name, &error.to_string()),
        }
    }
    match toprope_devices::torch_chips(arguments.python.as_deref()) {
        Ok(chips) if chips.is_empty() => show("other chips", "your PyTorch sees none (docs/pytorch.md)"),
        Ok(chips) => chips.iter().for_each(|chip| show(&chip.name, &chip.hardware)),
        Err(error) => {
            show("other chips", &format!("whatever your PyTorch runs on (docs/pytorch.md): {error}"))
        }
    }
}

struct Session<'a> {
    arguments: &'a Qualify,
    world: &'a RealWorld,
    tier: Tier,
}

/// What opens a variant.
type OwnOpener<'a> = Box<dyn Fn() -> Result<Box<dyn Device>, String> + 'a>;

/// More dies than these are not looked for.
const DIES_MAX: usize = 64;
/// Rounds that sister dies vote in.
const ROUNDS: u64 = 8;

impl Session<'_> {
    fn open(&self, name: &str) -> Result<Box<dyn Device>, String> {
        open(name, &options(self.arguments)).map_err(|error| error.to_string())
    }

    /// Each device of a list, `D:all` as all that open.
    fn each(&self, names: &[String]) -> Result<Vec<String>, Failure> {
        let mut each = Vec::new();
        for name in names {
            let (base, variants) =
                name.split_once('+').map_or((name.as_str(), ""), |(base, rest)| (base, rest));
            let (base, count) = match base.rsplit_once("=") {
                Some((base, count)) if base.ends_with(":all") => (base, Some(dies(name, count)?)),
                _ => (base, None),
            };
            let Some(family) = base.strip_suffix(":all") else {
                each.push(name.clone());
                continue;
            };
            let numbered = |index: usize| match variants {
                "" => format!("{family}:{index}"),
                variants => format!("{family}:{index}+{variants}"),
            };
            if let Some(count) = count {
                each.extend((0..count).map(numbered));
                continue;
            }
            if family == "pytorch:cpu" {
                let message = format!(
                    "{name}: a processor has as many processes as are asked for\nhint: say how many, as in pytorch:cpu:all=8"
                );
                return Err(Failure::new(Exit::Usage, message));
            }
            let mut found = 0;
            for index in 0..DIES_MAX {
                match self.open(&numbered(index)) {
                    Ok(_) => each.push(numbered(index)),
                    Err(error) if index == 0 => {
                        return Err(Failure::new(Exit::Device, format!("{name}: {error}")));
                    }
                    Err(_) => break,
                }
                found += 1;
            }
            println!("{name}: {found} dies");
        }
        let mut known = BTreeSet::new();
        if let Some(twice) = each.iter().find(|name| !known.insert(name.as_str())) {
            return Err(Failure::new(Exit::Usage, format!("--device: `{twice}` is named twice")));
        }
        Ok(each)
    }

    /// Puts several dies side by side, and gives the one to look at: the bad one, the slow one, or the first.
    fn poll(&self, names: &[String], asked: &Asked) -> Result<(String, Option<Vote>), Failure> {
        let clock = || self.world.clock().monotonic();
        let mut dies = Vec::new();
        for name in names {
            let device = self.open(name).or_exit(Exit::Device)?;
            dies.push(Die { name: name.clone(), device });
        }
        let mut oracle = oracle();
        let deadline = Deadline::within(&clock, self.tier.total().mul_f64(0.3));
        let seed = self.arguments.seed;
        let mut found = vote(&mut dies, &mut oracle, seed, ROUNDS, &deadline).map_err(failure)?;
        println!("{}", table::wrapped("", &found.told()));
        for die in &found.dies {
            println!(
                "  {:<30} agrees in {}, alone in {}, outside in {}, {} faults",
                die.name, die.agreed, die.alone, die.outside, die.faults
            );
        }
        let timed = match asked.shapes.is_empty() {
            true => proofs::timed()?,
            false => asked.shapes.clone(),
        };
        let deadline = Deadline::within(&clock, self.tier.total().mul_f64(0.2));
        let shapes = for_speed(&timed);
        found.paces = sisters::measure(&mut dies, &shapes, seed, &clock, &deadline).map_err(failure)?;
        for pace in &found.paces {
            println!("{}", table::wrapped(&format!("  {:<30} ", pace.name), &table::pace(pace)));
        }
        let bad = found.bad().first().map(|die| die.name.clone());
        let slow = found.slow().first().map(|pace| pace.name.clone());
        let chosen = bad.or(slow).unwrap_or_else(|| names[0].clone());
        Ok((chosen, Some(found)))
    }

    /// Qualifies one device, which may have stood apart from its sisters.
    fn one(
        &self,
        name: &str,
        asked: &Asked,
        apart: Option<Standing>,
        beside_sisters: Option<Speed>,
    ) -> Result<Qualification, Failure> {
        let clock = || self.world.clock().monotonic();
        let sleep = |time: Duration| self.world.clock().sleep(time);
        let opener = || self.open(name);
        let device = opener().or_exit(Exit::Device)?;
        let against = self.arguments.against.clone().unwrap_or_else(|| trusted_of(name).into());
        let trusted = self.open(&against).or_exit(Exit::Device)?;
        let described = device.describe();
        let line = format!(
            "{}, level {}; beside {}, judged by the oracle in f64",
            described.hardware,
            described.level,
            trusted.describe().name
        );
        println!("{}", table::wrapped(&format!("{name}: "), &line));
        let quick = self.tier == Tier::Quick;
        let mut proofs = proofs::proofs(if quick { 10 } else { 20 })?;
        if quick {
            // One in each precision.
            proofs.training.truncate(2);
        }
        if let Some(model) = &asked.model {
            let dtypes = if quick { &[DType::Bf16][..] } else { &[DType::Bf16, DType::F32] };
            let own = proofs::published(self.world, model, dtypes)?;
            // What was asked for comes first.
            proofs.inference.splice(0..0, own.into_iter().map(|case| (case, None)));
        }
        let variants = remedy::variants(name);
        let openers: Vec<OwnOpener<'_>> =
            variants.iter().map(|variant| Box::new(move || self.open(variant)) as OwnOpener<'_>).collect();
        let alternatives = variants
            .iter()
            .zip(&openers)
            .map(|(name, open)| Alternative { name: name.clone(), open: &**open })
            .collect();
        let mut tell = |stage: &toprope_qualify::result::Stage| println!("{}", table::stage(stage));
        let mut bench = Bench {
            open: &opener,
            device,
            trusted: Some(trusted),
            oracle: oracle(),
            clock: &clock,
            sleep: &sleep,
            seed: self.arguments.seed,
            opening: Duration::ZERO,
            losses: Vec::new(),
            losses_in_a_row: 0,
        };
        let side = remedy::on_stream(name);
        let open_side = || self.open(side.as_deref().unwrap_or_default());
        let without = |setting| {
            let changed = remedy::without(name, &[setting]);
            (changed != name).then(|| self.open(&changed))
        };
        let mut request = Request {
            tier: self.tier,
            shapes: asked.shapes.clone(),
            skipped: asked.skipped.clone(),
            training: proofs.training,
            inference: proofs.inference,
            for_inference: proofs.for_inference,
            for_checks: CHECKS.iter().map(ToString::to_string).collect(),
            without: &without,
            exact_products: remedy::asks_for_exact_products(name),
            alternatives,
            on_stream: side.as_ref().map(|_| &open_side as Opener<'_>),
            timed: proofs.timed,
            // The reference device is right, and slow.
            beside_trusted: against != "reference",
            datasheet: self.arguments.datasheet,
            beside_sisters,
            apart,
            memory_bytes_max: self.arguments.memory << 20,
            soak_max: self.arguments.soak.map_or(Duration::MAX, Duration::from_secs),
            tell: &mut tell,
        };
        qualify(&mut bench, &mut request).map_err(failure)
    }

    /// Writes what was asked for, and the recipe that the verdict asks for.
    fn write(
        &self,
        opened: &str,
        qualification: &Qualification,
        asked: &Asked,
        poll: Option<&Vote>,
    ) -> Result<(), Failure> {
        let write = |path: &Path, text: String| {
            write_durably(self.world.files(), path, text.as_bytes()).or_exit(Exit::Run)
        };
        if let Some(path) = &self.arguments.junit {
            write(path, outputs::junit(qualification))?;
        }
        if let Some(path) = &self.arguments.html {
            let changes: Vec<String> = told(&qualification.ruling.changes, opened);
            write(path, report::qualification::page(qualification, &changes, poll))?;
            println!("report {}", path.display());
        }
        if qualification.ruling.verdict == Verdict::TrainWith {
            let recipe = match &asked.recipe {
                Some(recipe) => recipe.clone(),
                None => recipe::load("tiny-moe", &[])?,
            };
            let device = &qualification.device;
            let trusted = qualification.against.as_ref().map_or("cpu", |against| against.name.as_str());
            let recipe = remedy::applied(&recipe, &qualification.ruling.changes, opened, trusted);
            let path = remedy::write(self.world, &recipe, self.arguments.write.as_deref(), device)?;
            println!("recipe {}: toprope train {}", path.display(), path.display());
        }
        Ok(())
    }
}

/// How many dies `:all=N` names.
fn dies(name: &str, count: &str) -> Result<usize, Failure> {
    let number = count.parse().ok().filter(|count| (1..=DIES_MAX).contains(count));
    number.ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format!("--device {name}: `{count}` is no number of dies from 1 to {DIES_MAX}"),
        )
    })
}

fn told(changes: &[Change], device: &str) -> Vec<String> {
    changes.iter().map(|change| remedy::told(change, device)).collect()
}

/// What a device stands beside where nobody says.
fn trusted_of(name: &str) -> &'static str {
    if name == "cpu" || name.starts_with("cpu:") { "reference" } else { "cpu" }
}

fn failure(error: QualifyError) -> Failure {
    Failure::new(Exit::Internal, error)
}
