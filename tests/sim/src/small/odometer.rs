//! Every row of choices, one run after the other.
//!
//! A run asks [`Odometer::choose`] wherever something may turn out in several ways; the answers of the next run are
//! the next row, last place first, so that no row is missed and none comes twice. How many ways there are at a place
//! may depend on what was chosen before it.

/// A row of choices, and where in it the run is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Odometer {
    /// What is chosen at each place, and of how many.
    row: Vec<(usize, usize)>,
    asked: usize,
}

impl Odometer {
    /// One row only.
    pub(crate) fn at(row: &[usize]) -> Self {
        Odometer { row: row.iter().map(|&chosen| (chosen, usize::MAX)).collect(), asked: 0 }
    }

    /// One of `ways`; the first one where this row has not been before.
    pub(crate) fn choose(&mut self, ways: usize) -> usize {
        if ways <= 1 {
            return 0;
        }
        if self.asked == self.row.len() {
            self.row.push((0, ways));
        }
        self.asked += 1;
        let place = &mut self.row[self.asked - 1];
        place.1 = ways;
        place.0.min(ways - 1)
    }

    /// Turns to the next row; false after the last one.
    pub(crate) fn turn(&mut self) -> bool {
        self.asked = 0;
        while let Some((chosen, ways)) = self.row.pop() {
            if chosen + 1 < ways {
                self.row.push((chosen + 1, ways));
                return true;
            }
        }
        false
    }

    /// What was chosen, place by place.
    pub(crate) fn row(&self) -> impl Iterator<Item = usize> {
        self.row.iter().map(|(chosen, _)| *chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once() {
        let mut odometer = Odometer::default();
        let mut rows = Vec::new();
        loop {
            let first = odometer.choose(3);
            let second = if first == 1 { odometer.choose(2) } else { odometer.choose(1) };
            rows.push((first, second, odometer.choose(2)));
            if !odometer.turn() {
                break;
            }
        }
        let all = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1), (2, 0, 0), (2, 0, 1)];
        assert_eq!(rows, all);
    }
}
