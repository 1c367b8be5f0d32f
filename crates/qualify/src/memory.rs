//! Memory and fault behaviour: what is filled holds, what is given back is there again, what is too much is refused as such,
//! and the device works afterwards.

use crate::bench::Bench;
use crate::budget::Deadline;
use crate::result::Outcome;
use toprope_conformance::random::Random;
use toprope_program::{Allocation, BufferId, Device, Fault, FaultKind};

/// Bytes of a block.
const BLOCK_BYTES: usize = 16 << 20;

/// What was filled, and how it ended.
#[derive(Debug)]
pub struct Filled {
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes that held at once.
    pub bytes: u64,
}

/// Fills memory block by block up to `most_bytes` or until the device has no more, reads everything back, gives it back, and
/// sees that as much can be had again.
pub fn fill(bench: &mut Bench<'_>, most_bytes: u64, deadline: &Deadline<'_>) -> Filled {
    let seed = bench.seed;
    let device = bench.device.as_mut();
    let ended = match once(device, most_bytes, deadline, seed) {
        Err(fault) => Err(fault),
        Ok((bytes, Some(finding))) => Ok((bytes, Some(finding))),
        Ok((bytes, None)) => match once(device, bytes, deadline, seed.wrapping_add(1)) {
            Err(fault) => Err(fault),
            Ok((_, Some(finding))) => Ok((bytes, Some(finding))),
            Ok((again, None)) if again < bytes && !deadline.passed() => {
                Ok((bytes, Some(format!("of {bytes} bytes given back only {again} were there again"))))
            }
            Ok(_) => Ok((bytes, None)),
        },
    };
    match ended {
        Ok((bytes, None)) if bytes > 0 => Filled { outcome: Outcome::Passed, bytes },
        Ok((_, None)) => Filled { outcome: Outcome::NotRun("there was no time".into()), bytes: 0 },
        Ok((bytes, Some(finding))) => Filled { outcome: Outcome::Failed(finding), bytes },
        Err(fault) => {
            bench.revive(&fault);
            Filled { outcome: Outcome::Failed(fault.to_string()), bytes: 0 }
        }
    }
}

/// Bytes that were filled, and what did not hold.
fn once(
    device: &mut dyn Device,
    most_bytes: u64,
    deadline: &Deadline<'_>,
    seed: u64,
) -> Result<(u64, Option<String>), Fault> {
    let blocks = Blocks::fill(device, most_bytes, deadline, seed)?;
    let mut finding = None;
    for index in 0..blocks.count() {
        let found = blocks.check(device, index)?;
        finding = finding.or(found);
    }
    let bytes = blocks.bytes();
    blocks.release(device)?;
    Ok((bytes, finding))
}

/// Memory that is held full of a pattern.
#[derive(Debug, Default)]
pub struct Blocks {
    held: Vec<BufferId>,
    seed: u64,
}

impl Blocks {
    /// Fills up to `most_bytes`, or until the device has no more, or until the deadline.
    ///
    /// # Errors
    /// The device fails otherwise than by having no more.
    pub fn fill(
        device: &mut dyn Device,
        most_bytes: u64,
        deadline: &Deadline<'_>,
        seed: u64,
    ) -> Result<Blocks, Fault> {
        let mut blocks = Blocks { held: Vec::new(), seed };
        while blocks.bytes() + BLOCK_BYTES as u64 <= most_bytes && !deadline.passed() {
            match blocks.add(device) {
                Ok(()) => {}
                Err(Fault { kind: FaultKind::OutOfMemory { .. }, .. }) => break,
                Err(fault) => {
                    // A device that is lost has nothing to give back; one that goes on must not keep it.
                    let _ = blocks.release(device);
                    return Err(fault);
                }
            }
        }
        Ok(blocks)
    }

    /// One more block, full of its pattern.
    fn add(&mut self, device: &mut dyn Device) -> Result<(), Fault> {
        let block = device.allocate(Allocation::Own(BLOCK_BYTES))?;
        self.held.push(block);
        device.write(block, 0, &pattern(self.seed, self.held.len() - 1))
    }

    /// How many are held.
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> u64 {
        self.count() as u64 * BLOCK_BYTES as u64
    }

    /// Reads a block back: what does not hold.
    ///
    /// # Errors
    /// The device fails.
    pub fn check(&self, device: &mut dyn Device, index: usize) -> Result<Option<String>, Fault> {
        let Some(block) = self.held.get(index) else { return Ok(None) };
        let mut read = vec![0; BLOCK_BYTES];
        device.read(*block, 0, &mut read)?;
        let want = pattern(self.seed, index);
        Ok(read.iter().zip(&want).position(|(got, want)| got != want).map(|at| {
            let (got, want) = (read[at], want[at]);
            format!("block {index} byte {at} was written {want:#04x} and read {got:#04x}")
        }))
    }

    /// Gives all of it back.
    ///
    /// # Errors
    /// The device fails.
    pub fn release(self, device: &mut dyn Device) -> Result<(), Fault> {
        self.held.into_iter().try_for_each(|block| device.release(block))
    }
}

/// Bits that differ from block to block and within one.
fn pattern(seed: u64, block: usize) -> Vec<u8> {
    let mut random = Random::new(seed, &format!("block {block}"));
    let page: Vec<u8> = (0..4096 / 4).flat_map(|_| random.word().to_le_bytes()).collect();
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    for number in 0..BLOCK_BYTES / page.len() {
        bytes.extend_from_slice(&page);
        let start = bytes.len() - page.len();
        bytes[start..start + 8].copy_from_slice(&(number as u64).to_le_bytes());
    }
    bytes
}

/// More than any device has.
const TOO_MUCH: usize = 1 << 50;

/// Asks for more than there is: the answer must be `OutOfMemory`, and the device must work behind it.
pub fn refuses_too_much(bench: &mut Bench<'_>) -> Outcome {
    let asked = bench.device.allocate(Allocation::Own(TOO_MUCH));
    let told = match asked {
        Err(Fault { kind: FaultKind::OutOfMemory { .. }, .. }) => Outcome::Passed,
        Err(fault) => {
            bench.revive(&fault);
            Outcome::Failed(format!("{TOO_MUCH} bytes were refused as `{fault}`, not as out of memory"))
        }
        Ok(buffer) => {
            // Nothing was touched, so it may have been a promise; giving it back must work.
            match bench.device.release(buffer) {
                Ok(()) => Outcome::Failed(format!("{TOO_MUCH} bytes were promised, which no machine has")),
                Err(fault) => Outcome::Failed(fault.to_string()),
            }
        }
    };
    if told.failed() {
        return told;
    }
    // It must serve on.
    let mut serve = || -> Result<bool, Fault> {
        let device = bench.device.as_mut();
        let buffer = device.allocate(Allocation::Own(256))?;
        device.write(buffer, 0, &[7; 256])?;
        let mut read = [0; 256];
        device.read(buffer, 0, &mut read)?;
        device.release(buffer)?;
        Ok(read == [7; 256])
    };
    match serve() {
        Ok(true) => Outcome::Passed,
        Ok(false) => {
            Outcome::Failed("after a refused allocation a buffer reads other bytes than were written".into())
        }
        Err(fault) => {
            let message = format!("after a refused allocation: {fault}");
            bench.revive(&fault);
            Outcome::Failed(message)
        }
    }
}
