//! Dense row-major matrices as slices, and the one multiplication everything else is made of.
//!
//! Multiplication always runs on the calling thread. Parallelism is one level up (shards of a
//! batch, sequences to encode), which keeps results independent of the number of threads and has
//! no synchronisation inside a product of a few hundred rows.

/// A read-only matrix over a slice: row-major, possibly a band of columns of a wider matrix.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> View<'a> {
    /// A contiguous `rows × cols` matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::band(data, rows, cols, cols)
    }

    /// The first `cols` columns of rows that lie `stride` apart.
    pub fn band(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(cols <= stride && extent(rows, cols, stride) <= data.len(), "view reaches past its slice");
        View { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// Elements from the first to the last of a band, both included.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// What a product does with what its destination holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Replaces it.
    Overwrite,
    /// Adds to it.
    Add,
}

/// `out = scale · a·b`, or `out += scale · a·b`; the rows of `out` lie `stride` apart.
///
/// # Panics
/// If the inner dimensions differ or `out` is too short.
pub fn multiply(out: &mut [f32], stride: usize, a: View<'_>, b: View<'_>, scale: f32, store: Store) {
    assert_eq!(a.cols, b.rows, "inner dimensions differ");
    assert!(
        b.cols <= stride && extent(a.rows, b.cols, stride) <= out.len(),
        "product reaches past its slice"
    );
    if a.rows == 0 || b.cols == 0 {
        return;
    }
    let add = store == Store::Add;
    // SAFETY: both views were checked at construction to lie inside their slices, `out` just above,
    // and `out` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The inner product, summed in eight interleaved lanes: a fixed order the compiler can vectorise.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0f32; 8];
    for (x, y) in a8.iter().zip(b8) {
        for lane in 0..8 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    fold(lanes) + rest
}

/// The sum, in the order of [`dot`].
pub fn sum(a: &[f32]) -> f32 {
    let (a8, rest) = a.as_chunks::<8>();
    let mut lanes = [0f32; 8];
    for x in a8 {
        for lane in 0..8 {
            lanes[lane] += x[lane];
        }
    }
    fold(lanes) + rest.iter().sum::<f32>()
}

/// The squared Euclidean distance, in the order of [`dot`].
pub fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0f32; 8];
    for (x, y) in a8.iter().zip(b8) {
        for lane in 0..8 {
            let difference = x[lane] - y[lane];
            lanes[lane] += difference * difference;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| (x - y) * (x - y)).sum();
    fold(lanes) + rest
}

/// `a += scale · b`, element by element.
pub fn add_scaled(a: &mut [f32], scale: f32, b: &[f32]) {
    a.iter_mut().zip(b).for_each(|(x, y)| *x += scale * y);
}

fn fold(l: [f32; 8]) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_views_and_transposes() {
        // The left half of [[1, 2, 9], [3, 4, 9]] times its own transpose.
        let wide = [1.0, 2.0, 9.0, 3.0, 4.0, 9.0];
        let a = View::band(&wide, 2, 2, 3);
        let mut out = [100.0; 4];
        multiply(&mut out, 2, a, a.t(), 1.0, Store::Overwrite);
        assert_eq!(out, [5.0, 11.0, 11.0, 25.0]);
        multiply(&mut out, 2, a, a.t(), -1.0, Store::Add);
        assert_eq!(out, [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "past its slice")]
    fn views_stay_inside_their_slice() {
        View::new(&[0.0; 5], 2, 3);
    }

    #[test]
    fn reductions_cover_the_remainder() {
        let a: Vec<f32> = (1..=11).map(|v| v as f32).collect();
        assert_eq!(sum(&a), 66.0);
        assert_eq!(dot(&a, &a), 506.0);
        assert_eq!(squared_distance(&a, &[0.0; 11]), 506.0);
    }
}
