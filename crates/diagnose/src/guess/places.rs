//! Wrong ways to count along an axis: which place is read, or written, in place of each.

use super::Kind;

/// Where the place of an index is looked for, in an axis of so many.
type From = Box<dyn Fn(usize, usize) -> usize>;

/// A wrong way to count.
pub(super) struct Places {
    /// What it is, behind the name of an axis.
    pub what: String,
    /// The place that is read in place of an index.
    pub from: From,
}

impl Places {
    /// The place that is read for each of so many.
    fn map(&self, size: usize) -> Vec<usize> {
        (0..size).map(|i| (self.from)(i, size)).collect()
    }

    /// Places that are only taken in another order are another layout; where some are read twice and others never it is
    /// another part of the operand.
    pub fn kind(&self, size: usize) -> Kind {
        let mut read = self.map(size);
        read.sort_unstable();
        read.dedup();
        if read.len() == size { Kind::Layout } else { Kind::WrongOperand }
    }
}

/// Widths of blocks that are mixed up.
const BLOCKS: [usize; 5] = [2, 4, 8, 16, 32];

/// The usual other orders of an axis.
pub(super) fn orders(size: usize) -> Vec<Places> {
    let mut list = Vec::new();
    let mut push = |what: &str, from: From| list.push(Places { what: what.into(), from });
    push("backwards", Box::new(|i, n| n - 1 - i));
    if size.is_multiple_of(2) && size > 2 {
        push("with its halves interleaved", Box::new(|i, n| i % 2 * (n / 2) + i / 2));
        push("with its neighbours apart", Box::new(|i, n| i % (n / 2).max(1) * 2 + i / (n / 2).max(1)));
        push("with its halves exchanged", Box::new(|i, n| (i + n / 2) % n));
    }
    distinct(list, size, Vec::new())
}

/// Other wrong ways to count to `size`, each of which takes at least one place for another.
pub(super) fn places(size: usize) -> Vec<Places> {
    let mut list = Vec::new();
    let mut push = |what: String, from: From| list.push(Places { what, from });
    push("one place on, the last as it is".into(), Box::new(|i, n| (i + 1).min(n - 1)));
    push("one place back, the first as it is".into(), Box::new(|i, _| i.saturating_sub(1)));
    push("one place on, around".into(), Box::new(|i, n| (i + 1) % n));
    push("one place back, around".into(), Box::new(|i, n| (i + n - 1) % n));
    push("with the first in place of the last".into(), Box::new(|i, n| if i + 1 == n { 0 } else { i }));
    push("with the last in place of the first".into(), Box::new(|i, n| if i == 0 { n - 1 } else { i }));
    push("with the last but one in place of the last".into(), Box::new(|i, n| i.min(n.saturating_sub(2))));
    push("with the first alone".into(), Box::new(|_, _| 0));
    push("with the last alone".into(), Box::new(|_, n| n - 1));
    push(
        "with its last two exchanged".into(),
        Box::new(|i, n| if n > 1 && i + 2 >= n { 2 * n - 3 - i } else { i }),
    );
    push("with its first two exchanged".into(), Box::new(|i, n| if n > 1 && i < 2 { 1 - i } else { i }));
    push("with each place twice".into(), Box::new(|i, _| i / 2));
    push("with every second place, around".into(), Box::new(|i, n| 2 * i % n));
    if size.is_multiple_of(2) {
        push("with its first half twice".into(), Box::new(|i, n| i % (n / 2).max(1)));
        push("with its second half twice".into(), Box::new(|i, n| n / 2 + i % (n / 2).max(1)));
        push("with its neighbours exchanged".into(), Box::new(|i, _| i ^ 1));
    }
    for block in BLOCKS.into_iter().filter(|block| *block < size) {
        push(
            format!("{block} places on, the last as they are"),
            Box::new(move |i, n| (i + block).min(n - 1)),
        );
        push(
            format!("{block} places back, the first as they are"),
            Box::new(move |i, _| i.saturating_sub(block)),
        );
        push(
            format!("with the block of {block} before each"),
            Box::new(move |i, _| if i >= block { i - block } else { i }),
        );
        push(format!("{block} places on, around"), Box::new(move |i, n| (i + block) % n));
        push(format!("with its first block of {block} alone"), Box::new(move |i, _| i % block));
        push(
            format!("with each block of {block} backwards"),
            Box::new(move |i, n| {
                let other = i / block * block + (block - 1 - i % block);
                if other < n { other } else { i }
            }),
        );
        push(
            format!("with blocks of {block} exchanged by twos"),
            Box::new(move |i, n| if (i ^ block) < n && block.is_power_of_two() { i ^ block } else { i }),
        );
        if size.is_multiple_of(block) {
            push(
                format!("with blocks of {block} taken as their number"),
                Box::new(move |i, n| i % block * (n / block) + i / block),
            );
            push(
                format!("with their number taken as blocks of {block}"),
                Box::new(move |i, n| i % (n / block).max(1) * block + i / (n / block).max(1)),
            );
        }
    }
    let known = orders(size).iter().map(|places| places.map(size)).collect();
    distinct(list, size, known)
}

/// Those that take a place for another, each but once.
fn distinct(mut list: Vec<Places>, size: usize, mut seen: Vec<Vec<usize>>) -> Vec<Places> {
    seen.push((0..size).collect());
    list.retain(|places| {
        let map = places.map(size);
        let new = !seen.contains(&map) && map.iter().all(|place| *place < size);
        seen.push(map);
        new
    });
    list
}

#[cfg(test)]
mod tests {
    use super::{Kind, orders, places};

    #[test]
    fn places_lie_within_the_axis_and_are_all_different() {
        // A small case may be asked for what was made for a larger one.
        let larger: Vec<_> = orders(40).into_iter().chain(places(40)).collect();
        let last = |n: usize| larger.iter().map(|p| (p.from)(n - 1, n)).max();
        assert!((1..40).all(|n| last(n).is_some()));
        for size in 2..40 {
            let list: Vec<_> = orders(size).into_iter().chain(places(size)).collect();
            assert!(list.iter().all(|p| (0..size).all(|i| (p.from)(i, size) < size)));
            let maps: std::collections::BTreeSet<Vec<usize>> =
                list.iter().map(|p| (0..size).map(|i| (p.from)(i, size)).collect()).collect();
            assert_eq!(maps.len(), list.len());
        }
    }

    #[test]
    fn an_order_is_a_layout_and_a_place_read_twice_is_not() {
        let kind = |what: &str| places(6).iter().find(|p| p.what == what).map(|p| p.kind(6));
        assert_eq!(orders(6)[0].kind(6), Kind::Layout);
        assert_eq!(kind("one place on, the last as it is"), Some(Kind::WrongOperand));
        assert_eq!(kind("with its last two exchanged"), Some(Kind::Layout));
    }
}
