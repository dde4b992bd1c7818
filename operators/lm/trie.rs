//! The label trie: every label's tokens once, shared beginnings shared.
//!
//! Decision: labels are tokenised as they stand right after the assistant header, without a leading
//! space, and each path ends with the end token; so the log-probability of a path is that of the
//! answer being exactly this label. End tokens are never forwarded, only asked for.

use super::batch::Branch;
use super::error::LmError;
use super::head::Edge;
use super::tokenizer::LmTokenizer;

/// What stands before an answer; tokens must not merge across it.
const HEADER_TAIL: &str = "assistant\n";

/// The labels a model is asked about, as a trie of tokens.
#[derive(Clone, Debug)]
pub struct LabelTrie {
    branches: Vec<Branch>,
    /// Sorted by row; row 0 is the last token of the prompt, row `i + 1` is branch `i`.
    edges: Vec<Edge>,
    /// The edges of each label's path, the end token last.
    paths: Vec<Vec<usize>>,
}

impl LabelTrie {
    /// Tokenises labels and builds their trie; label order is kept in all results.
    ///
    /// # Errors
    /// If there are no labels, or one is empty, given twice, or merges with the header before it.
    pub fn new(tokenizer: &LmTokenizer, labels: &[String]) -> Result<Self, LmError> {
        if labels.is_empty() {
            return Err(LmError::NoLabels);
        }
        let header = tokenizer.encode(HEADER_TAIL, false)?;
        let mut paths = Vec::with_capacity(labels.len());
        for label in labels {
            let fail = |reason| Err(LmError::Label { label: label.clone(), reason });
            let ids = tokenizer.encode(label, false)?;
            if ids.is_empty() {
                return fail("is empty");
            }
            let in_context = tokenizer.encode(&format!("{HEADER_TAIL}{label}"), false)?;
            if in_context.strip_prefix(&header[..]) != Some(&ids[..]) {
                return fail("begins with white space, which merges with the line break before an answer");
            }
            paths.push(ids);
        }
        Self::from_paths(paths, tokenizer.end_token()).map_err(|i| LmError::Label {
            label: labels[i].clone(),
            reason: "is given twice, or contains the end token",
        })
    }

    /// Builds the trie of token paths; on failure the index of a path that repeats another or
    /// holds the end token. With these excluded, no path with its end token is a prefix of another.
    pub(crate) fn from_paths(paths: Vec<Vec<u32>>, end: u32) -> Result<Self, usize> {
        let mut order: Vec<usize> = (0..paths.len()).collect();
        order.sort_by(|a, b| paths[*a].cmp(&paths[*b]));
        let mut branches: Vec<Branch> = Vec::new();
        let mut edges: Vec<Edge> = Vec::new();
        let mut labels = vec![Vec::new(); paths.len()];
        // The rows of the label before, whose beginning the next one (in order) may share.
        let mut last: (&[u32], Vec<usize>) = (&[], Vec::new());
        for label in order {
            let path = &paths[label][..];
            if path.contains(&end) || path == last.0 {
                return Err(label);
            }
            let shared = path.iter().zip(last.0).take_while(|(a, b)| a == b).count();
            last.1.truncate(shared);
            for token in &path[shared..] {
                let parent = last.1.last().copied();
                branches.push(Branch { token: *token, parent });
                last.1.push(branches.len() - 1);
            }
            last.0 = path;
            let rows = std::iter::once(0).chain(last.1.iter().map(|branch| branch + 1));
            let path = rows.zip(path.iter().chain([&end]));
            labels[label] = path.map(|(row, token)| Edge { row, token: *token }).collect::<Vec<_>>();
            edges.extend(&labels[label]);
        }
        edges.sort_unstable_by_key(|edge| (edge.row, edge.token));
        edges.dedup();
        let find = |edge: &Edge| edges.partition_point(|e| (e.row, e.token) < (edge.row, edge.token));
        let paths = labels.iter().map(|path| path.iter().map(find).collect()).collect();
        Ok(Self { branches, edges, paths })
    }

    /// Number of labels, at least one.
    pub fn labels(&self) -> usize {
        self.paths.len()
    }

    /// Tokens forwarded for each prompt beside its own.
    pub fn nodes(&self) -> usize {
        self.branches.len()
    }

    /// The tokens to forward, parents first.
    pub(crate) fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// The questions to ask, by row.
    pub(crate) fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// The question whether an answer ends with this label.
    pub(crate) fn end(&self, label: usize) -> Edge {
        let last = self.paths[label].last().expect("a path has its end token");
        self.edges[*last]
    }

    /// Positions the deepest label takes after a prompt.
    pub(crate) fn depth(&self) -> usize {
        self.paths.iter().map(|path| path.len() - 1).max().unwrap_or(0)
    }

    /// The gradient of the log-probability of each edge, given that of each label.
    pub(crate) fn spread(&self, labels: &[f64]) -> Vec<f64> {
        let mut edges = vec![0.0; self.edges.len()];
        for (path, slope) in self.paths.iter().zip(labels) {
            path.iter().for_each(|edge| edges[*edge] += slope);
        }
        edges
    }

    /// Log-probability of each label from those of the edges.
    pub(crate) fn sum(&self, edges: &[f64]) -> Vec<f32> {
        self.exact_sum(edges).into_iter().map(|sum| sum as f32).collect()
    }

    /// [`LabelTrie::sum`] as exact as the edges are.
    pub(crate) fn exact_sum(&self, edges: &[f64]) -> Vec<f64> {
        self.paths.iter().map(|path| path.iter().map(|e| edges[*e]).sum()).collect()
    }
}

/// Where a token of the trie leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// To another node.
    Node(usize),
    /// To the end of a label.
    Label(usize),
}

/// The trie by its nodes, of which 0 is the last token of the prompt; parents come first.
pub(crate) struct Tree {
    /// The token of each node but node 0.
    pub(crate) tokens: Vec<u32>,
    /// What is asked at each node, and where it leads.
    pub(crate) steps: Vec<Vec<(u32, Next)>>,
}

impl Tree {
    /// The nodes of a trie.
    pub(crate) fn new(trie: &LabelTrie) -> Self {
        let mut steps = vec![Vec::new(); trie.nodes() + 1];
        for (node, branch) in (1..).zip(trie.branches()) {
            steps[branch.parent.map_or(0, |parent| parent + 1)].push((branch.token, Next::Node(node)));
        }
        for label in 0..trie.labels() {
            let end = trie.end(label);
            steps[end.row].push((end.token, Next::Label(label)));
        }
        Self { tokens: trie.branches().iter().map(|branch| branch.token).collect(), steps }
    }

    /// Whether other nodes hang below one.
    pub(crate) fn has_children(&self, node: usize) -> bool {
        self.steps[node].iter().any(|(_, next)| matches!(next, Next::Node(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 9;

    #[test]
    fn shares_beginnings_and_asks_each_question_once() {
        let paths = vec![vec![4, 5], vec![1], vec![4, 6, 7], vec![4]];
        let trie = LabelTrie::from_paths(paths, END).unwrap();
        assert_eq!((trie.labels(), trie.nodes(), trie.depth()), (4, 5, 3));
        let tokens: Vec<_> = trie.branches().iter().map(|b| (b.token, b.parent)).collect();
        assert_eq!(tokens, [(1, None), (4, None), (5, Some(1)), (6, Some(1)), (7, Some(3))]);
        // The root asks for 1 and 4; [4] for 5, 6 and the end; the others for the end or 7.
        assert_eq!(trie.edges().len(), 2 + 1 + 3 + 1 + 1 + 1);
        // A path's sum takes its own edges: weigh each edge by a power of ten of its token.
        let weights: Vec<f64> = trie.edges().iter().map(|e| 10f64.powi(e.token as i32 - 9)).collect();
        let expected = [1.0 + 1e-5 + 1e-4, 1.0 + 1e-8, 1.0 + 1e-5 + 1e-3 + 1e-2, 1.0 + 1e-5];
        assert_eq!(trie.sum(&weights), expected.map(|x: f64| x as f32));
    }

    #[test]
    fn refuses_what_has_no_own_path() {
        assert_eq!(LabelTrie::from_paths(vec![vec![1, 2], vec![3], vec![1, 2]], END).err(), Some(2));
        assert_eq!(LabelTrie::from_paths(vec![vec![1, END]], END).err(), Some(0));
    }

    #[test]
    fn no_label_order_changes_the_tree() {
        let build = |paths| format!("{:?}", LabelTrie::from_paths(paths, END).unwrap().branches());
        assert_eq!(build(vec![vec![1, 2], vec![1, 3]]), build(vec![vec![1, 3], vec![1, 2]]));
    }
}
