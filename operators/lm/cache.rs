//! Beginnings of prompts that outlive a call: a radix tree over token ids, in bounded memory.
//!
//! Decision: the tree is decided upon when a call is planned, on token ids alone, and what it holds
//! is promises: the keys and values of a node are computed by the first who needs them. So neither
//! what a call costs nor what is forgotten depends on threads or on how far a call got, and nobody
//! waits for the tree while something is computed. Bits never depend on it: no kernel sees where a
//! beginning was cut (`attention.rs`).
//!
//! What was used longest ago goes first, leaves only. A run goes on living in the calls that read it.
//! Children of a node may share a few tokens: below [`LEAST`] it costs more to cut a node in two than to
//! compute them again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::mem::replace;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::attention::Heads;
use super::batch::Run;
use super::kernel::TILE;
use super::keys_values::KeyValues;
use super::sizes::Sizes;

/// Shared tokens worth a forward pass of their own, and a node of their own.
pub(crate) const LEAST: usize = 12;
/// Parts of the bound of which one is for the tails of a call, which no prompt has shared so far.
const TAILS: usize = 4;
/// The node of no tokens.
pub(crate) const ROOT: usize = 0;

/// The keys and values of some tokens, once somebody has computed them.
#[derive(Default)]
pub(crate) struct Cell(Mutex<Option<Arc<Run>>>);

impl Cell {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Run>>> {
        // Runs are stored whole, so a panic elsewhere leaves none half made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run, made by the first who asks while the others wait.
    pub(crate) fn get_or_make(&self, make: impl FnOnce() -> Run) -> Arc<Run> {
        self.lock().get_or_insert_with(|| Arc::new(make())).clone()
    }

    /// The run, if it is there now; one that is being computed is not.
    pub(crate) fn peek(&self) -> Option<Arc<Run>> {
        self.0.try_lock().ok()?.clone()
    }

    /// Forgets the run.
    pub(crate) fn clear(&self) {
        *self.lock() = None;
    }
}

/// The tree of a model, for all threads.
pub(crate) struct Cache(Mutex<Tree>);

impl Cache {
    /// Holds keys and values of at most `bound` bytes.
    pub(crate) fn new(sizes: &Sizes, bound: usize) -> Self {
        Self(Mutex::new(Tree::new(Some((sizes.heads, sizes.layers)), bound)))
    }

    /// Bytes that are held at most.
    pub(crate) fn bound(&self) -> usize {
        self.tree().bound
    }

    /// The tree, for as long as a call is planned.
    pub(crate) fn tree(&self) -> MutexGuard<'_, Tree> {
        // A plan that panicked may have left nodes above the bound; the next one trims them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Node {
    parent: usize,
    children: Vec<usize>,
    tokens: Vec<u32>,
    /// When it was used last.
    used: u64,
    cell: Arc<Cell>,
}

/// Beginnings of prompts; see the head of this file.
pub(crate) struct Tree {
    /// Attention of each layer and number of layers; nothing where no keys are ever computed.
    shape: Option<(Heads, usize)>,
    bound: usize,
    /// Bytes of all nodes, computed or promised.
    bytes: usize,
    nodes: BTreeMap<usize, Node>,
    /// The next node's name.
    next: usize,
    clock: u64,
}

impl Tree {
    fn new(shape: Option<(Heads, usize)>, bound: usize) -> Self {
        let (children, tokens) = (Vec::new(), Vec::new());
        let root = Node { parent: ROOT, children, tokens, used: 0, cell: Arc::default() };
        Self { shape, bound, bytes: 0, nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, clock: 0 }
    }

    /// A tree for a plan that is priced, not run; it forgets everything.
    pub(crate) fn of_nothing() -> Self {
        Self::new(None, 0)
    }

    fn node(&mut self, name: usize) -> &mut Node {
        // Names come from this tree, and outside of `trim`, which ends a plan, none of them goes.
        self.nodes.get_mut(&name).expect("a node of the tree")
    }

    fn size(&self, tokens: usize) -> usize {
        self.shape.map_or(0, |(heads, layers)| layers * KeyValues::bytes(heads, tokens))
    }

    /// Begins a call: what it uses is younger than all before, what it merely leaves a little less so.
    pub(crate) fn begin(&mut self) {
        self.clock += 2;
    }

    /// The child of a node that `tokens` begin with, cut to what they share, and its length.
    pub(crate) fn follow(&mut self, node: usize, tokens: &[u32]) -> Option<(usize, usize)> {
        let shared = |child: &usize| {
            let own = &self.nodes[child].tokens;
            let length = own.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            (length, length == own.len(), *child)
        };
        let (length, whole, child) = self.nodes[&node].children.iter().map(shared).max()?;
        if !whole && length < LEAST {
            return None;
        }
        let found = if whole { child } else { self.cut(child, length) };
        self.node(found).used = self.clock;
        Some((found, length))
    }

    /// Cuts a node in two; the name of the first. The second keeps name and children.
    fn cut(&mut self, name: usize, at: usize) -> usize {
        let (first, shape) = (self.next, self.shape);
        self.next += 1;
        let node = self.node(name);
        let rest = node.tokens.split_off(at);
        // A run that is being computed belongs to those who wait for it; both halves begin anew.
        let run = node.cell.peek().zip(shape);
        let part = |range: Range<usize>| {
            let part = run.as_ref().map(|(run, (heads, _))| Arc::new(run.part(*heads, range)));
            Arc::new(Cell(Mutex::new(part)))
        };
        let (before, after) = (part(0..at), part(at..at + rest.len()));
        let sizes = [at, rest.len(), at + rest.len()];
        let (tokens, parent) = (replace(&mut node.tokens, rest), replace(&mut node.parent, first));
        node.cell = after;
        let used = node.used;
        self.nodes.insert(first, Node { parent, children: vec![name], tokens, used, cell: before });
        self.node(parent)
            .children
            .iter_mut()
            .filter(|child| **child == name)
            .for_each(|child| *child = first);
        let [before, after, whole] = sizes.map(|tokens| self.size(tokens));
        self.bytes += before + after - whole;
        first
    }

    /// Promises tokens after a node, none of whose children has [`LEAST`] of them.
    pub(crate) fn promise(&mut self, parent: usize, tokens: &[u32]) -> usize {
        self.insert(parent, tokens, self.clock)
    }

    /// Promises tokens that no two prompts have shared so far: they go before what was shared.
    pub(crate) fn leave(&mut self, parent: usize, tokens: &[u32]) -> usize {
        self.insert(parent, tokens, self.clock - 1)
    }

    fn insert(&mut self, parent: usize, tokens: &[u32], used: u64) -> usize {
        let name = self.next;
        let node = Node { parent, children: Vec::new(), tokens: tokens.to_vec(), used, cell: Arc::default() };
        self.nodes.insert(name, node);
        self.node(parent).children.push(name);
        self.next += 1;
        self.bytes += self.size(tokens.len());
        name
    }

    /// The keys and values of a node, present or to come.
    pub(crate) fn cell(&self, node: usize) -> Arc<Cell> {
        self.nodes[&node].cell.clone()
    }

    /// Whether a node is still in the tree.
    pub(crate) fn holds(&self, node: usize) -> bool {
        self.nodes.contains_key(&node)
    }

    /// Tokens that each of so many tails may leave, so that a call of many pushes little out.
    pub(crate) fn share(&self, tails: usize) -> usize {
        (self.bound / TAILS / tails.max(1) * TILE).checked_div(self.size(TILE)).unwrap_or(0)
    }

    /// Forgets leaves, those first that were used longest ago, until the rest is within the bound.
    pub(crate) fn trim(&mut self) {
        if self.bytes <= self.bound {
            return;
        }
        let age = |(name, node): (&usize, &Node)| Reverse((node.used, *name));
        let leaves = self.nodes.iter().filter(|(name, node)| node.children.is_empty() && **name != ROOT);
        let mut leaves: BinaryHeap<_> = leaves.map(age).collect();
        while self.bytes > self.bound {
            let Some(Reverse((_, name))) = leaves.pop() else { return };
            let Some(node) = self.nodes.remove(&name) else { continue };
            self.bytes -= self.size(node.tokens.len());
            let parent = self.node(node.parent);
            parent.children.retain(|child| *child != name);
            if parent.children.is_empty() && node.parent != ROOT {
                leaves.push(Reverse((parent.used, node.parent)));
            }
        }
    }
}

#[cfg(test)]
impl Tree {
    /// Bytes of all nodes, and those that computed keys and values take.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let runs = self.nodes.values().filter_map(|node| node.cell.peek());
        (self.bytes, runs.map(|run| run.bytes()).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lm::batch::Prefix;
    use crate::lm::testing::{small_network, tokens};

    /// Tokens of most nodes here.
    const RUN: usize = TILE;

    /// A tree for [`small_network`] with room for so many nodes of [`RUN`] tokens.
    fn tree(runs: usize) -> Tree {
        let network = small_network(1);
        let shape = (network.sizes().heads, network.sizes().layers);
        Tree::new(Some(shape), runs * shape.1 * KeyValues::bytes(shape.0, RUN))
    }

    /// What is in the tree, depth first.
    fn listed(tree: &Tree, node: usize) -> Vec<Vec<u32>> {
        let below = tree.nodes[&node].children.iter().flat_map(|child| listed(tree, *child));
        let own = (node != ROOT).then(|| tree.nodes[&node].tokens.clone());
        own.into_iter().chain(below).collect()
    }

    #[test]
    fn the_longest_beginning_is_found_and_cut_where_it_ends() {
        let mut tree = tree(100);
        let (a, b) = (tokens(1, 40), tokens(2, 20));
        tree.begin();
        let first = tree.promise(ROOT, &a);
        let below = tree.promise(first, &b);
        let whole = [&a[..], &b].concat();
        assert_eq!(tree.follow(ROOT, &whole), Some((first, 40)));
        assert_eq!(tree.follow(first, &whole[40..]), Some((below, 20)));
        assert_eq!(tree.follow(below, &tokens(3, 9)), None);
        // Too little is shared to cut for it.
        assert_eq!(tree.follow(ROOT, &a[..LEAST - 1]), None);
        let before = tree.bytes;
        let (half, length) = tree.follow(ROOT, &[&a[..25], &b].concat()).unwrap();
        assert_eq!(length, 25);
        assert_eq!(listed(&tree, ROOT), [&a[..25], &a[25..], &b]);
        assert_eq!(tree.bytes - before, tree.size(25) + tree.size(15) - tree.size(40));
        assert_eq!(tree.follow(half, &whole[25..]), Some((first, 15)));
        assert_eq!(tree.follow(first, &whole[40..]), Some((below, 20)));
        let other = tree.promise(half, &b);
        assert_eq!(tree.follow(half, &b), Some((other, 20)));
    }

    #[test]
    fn a_cut_run_has_the_bits_of_two() {
        let (network, ids) = (small_network(1), tokens(5, 45));
        let mut tree = tree(100);
        tree.begin();
        let node = tree.promise(ROOT, &ids);
        let whole = tree.cell(node).get_or_make(|| network.extend(&Prefix::default(), &ids));
        for (end, at) in [(33, 33), (16, 16)] {
            let (cut, length) = tree.follow(ROOT, &ids[..end]).unwrap();
            assert_eq!(length, at);
            let mut prefix = Prefix::default();
            let mut node = Some((cut, at));
            let mut start = 0;
            while let Some((name, length)) = node {
                prefix.push(tree.cell(name).peek().expect("what was computed is not lost"));
                start += length;
                node = tree.follow(name, &ids[start..]);
            }
            assert_eq!(prefix.end(), 45);
            let mut uncut = Prefix::default();
            uncut.push(whole.clone());
            assert_eq!(network.read(&prefix, &[7, 8]).1, network.read(&uncut, &[7, 8]).1);
        }
        assert_eq!(tree.sizes().0, tree.sizes().1);
    }

    #[test]
    fn a_run_that_is_being_computed_is_not_waited_for() {
        let mut tree = tree(100);
        let ids = tokens(5, 40);
        tree.begin();
        let node = tree.promise(ROOT, &ids);
        let cell = tree.cell(node);
        let held = cell.lock();
        assert_eq!(tree.follow(ROOT, &ids[..20]).unwrap().1, 20);
        assert!(tree.nodes.values().all(|node| node.cell.peek().is_none()));
        drop(held);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut tree = tree(3);
        let ids: Vec<Vec<u32>> = (0..6).map(|seed| tokens(10 + seed, RUN)).collect();
        let mut add = |use_again: &[usize], add: usize| {
            tree.begin();
            use_again.iter().for_each(|at| assert!(tree.follow(ROOT, &ids[*at]).is_some(), "{at} is kept"));
            tree.promise(ROOT, &ids[add]);
            tree.trim();
            assert!(tree.bytes <= tree.bound);
            let kept = |ids: &Vec<u32>| tree.nodes.values().any(|node| node.tokens == *ids);
            (0..6).filter(|at| kept(&ids[*at])).collect::<Vec<_>>()
        };
        assert_eq!(add(&[], 0), [0]);
        assert_eq!(add(&[], 1), [0, 1]);
        assert_eq!(add(&[], 2), [0, 1, 2]);
        assert_eq!(add(&[0], 3), [0, 2, 3]);
        assert_eq!(add(&[2], 4), [2, 3, 4]);
        assert_eq!(add(&[3, 2], 5), [2, 3, 5]);
    }

    #[test]
    fn leaves_go_before_what_they_hang_on_and_tails_before_what_was_shared() {
        let mut tree = tree(4);
        let part = |seed| tokens(seed, RUN);
        tree.begin();
        let trunk = tree.promise(ROOT, &part(1));
        tree.promise(trunk, &part(2));
        tree.leave(trunk, &part(3));
        tree.trim();
        assert_eq!(listed(&tree, ROOT), [part(1), part(2), part(3)]);
        // The trunk is older than what comes now, but something hangs on it.
        tree.begin();
        let other = tree.promise(ROOT, &part(4));
        tree.promise(other, &part(5));
        tree.trim();
        assert_eq!(listed(&tree, ROOT), [part(1), part(2), part(4), part(5)]);
        tree.begin();
        tree.promise(other, &part(6));
        tree.promise(other, &part(7));
        tree.trim();
        assert_eq!(listed(&tree, ROOT), [part(4), part(5), part(6), part(7)]);
    }

    #[test]
    fn many_tails_leave_little_and_one_a_quarter() {
        let tree = tree(40);
        assert_eq!([0, 1, 2, 10, 1000].map(|tails| tree.share(tails)), [10 * RUN, 10 * RUN, 5 * RUN, RUN, 0]);
        assert_eq!(Tree::of_nothing().share(1), 0);
    }
}
