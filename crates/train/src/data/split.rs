//! Which documents are held out: by a seeded hash of what they are, never by where they lie or when they were read.

use super::Document;

/// A number that orders things at random: the first eight bytes of BLAKE3 over purpose, seed and key.
pub(super) fn draw(purpose: &str, seed: u64, key: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(purpose.as_bytes()).update(&[0]).update(&seed.to_le_bytes()).update(key);
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Takes `count` documents out by the smallest draws over their text; both parts keep the documents' order. Documents
/// of the same text go to the same side, so a few more may be taken.
pub(super) fn hold_out(documents: Vec<Document>, count: usize, seed: u64) -> (Vec<Document>, Vec<Document>) {
    if count == 0 || documents.is_empty() {
        return (documents, Vec::new());
    }
    let draws: Vec<u64> =
        documents.iter().map(|document| draw("hold out", seed, document.text.as_bytes())).collect();
    let mut sorted = draws.clone();
    sorted.sort_unstable();
    let last = sorted[count.min(sorted.len()) - 1];
    let (mut training, mut validation) = (Vec::new(), Vec::new());
    for (document, draw) in documents.into_iter().zip(draws) {
        if draw <= last { validation.push(document) } else { training.push(document) }
    }
    (training, validation)
}

/// Keeps whole documents, in a drawn order, while they fit into `limit_bytes`; their own order stays. At least one is
/// kept, cut at a character where it is longer than the limit.
pub(super) fn trim(documents: Vec<Document>, limit_bytes: u64, seed: u64) -> Vec<Document> {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_cached_key(|&index| (draw("trim", seed, documents[index].text.as_bytes()), index));
    let mut kept = vec![false; documents.len()];
    let mut total = 0_u64;
    for &index in &order {
        let bytes = documents[index].text.len() as u64;
        if total + bytes <= limit_bytes {
            kept[index] = true;
            total += bytes;
        }
    }
    if let Some(&first) = order.first()
        && total == 0
    {
        kept[first] = true;
    }
    let mut kept = kept.into_iter();
    let mut documents = documents;
    documents.retain(|_| kept.next() == Some(true));
    if let [only] = documents.as_mut_slice() {
        only.truncate(usize::try_from(limit_bytes).unwrap_or(usize::MAX));
    }
    documents
}
