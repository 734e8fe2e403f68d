//! Curves as SVG. Letters are the viewer's: nothing here needs a font to be installed.

use crate::report::{Axis, Plot};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::error::Error;
use std::ops::Range;
use std::path::Path;

const SIZE: (u32, u32) = (900, 560);
const LETTERS: (&str, i32) = ("sans-serif", 15);
const TITLE: (&str, i32) = ("sans-serif", 19);
const POINT: i32 = 3;
const LABELS: usize = 8;

/// Writes a plot. One without a point is an error.
pub(crate) fn write(plot: &Plot, file: &Path) -> Result<(), Box<dyn Error>> {
    let x = range(plot, &plot.x, |point| point.0)?;
    let y = range(plot, &plot.y, |point| point.1)?;
    // Each kind of axis is a type of its own.
    match (plot.x.is_logarithmic, plot.y.is_logarithmic) {
        (true, true) => draw(plot, file, x.log_scale(), y.log_scale()),
        (true, false) => draw(plot, file, x.log_scale(), y),
        (false, true) => draw(plot, file, x, y.log_scale()),
        (false, false) => draw(plot, file, x, y),
    }
}

/// From the smallest to the largest value with a little air; an axis that is not logarithmic begins at zero.
fn range(plot: &Plot, axis: &Axis, value: fn(&(f64, f64)) -> f64) -> Result<Range<f64>, Box<dyn Error>> {
    let values = || plot.curves.iter().flat_map(|curve| &curve.points).map(value);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    if !(low.is_finite() && high > 0.0) || (axis.is_logarithmic && low <= 0.0) {
        return Err(format!("no points for the axis \"{}\" of {}", axis.label, plot.name).into());
    }
    Ok(if axis.is_logarithmic { low * 0.9..high * 1.15 } else { low.min(0.0)..high * 1.05 })
}

fn draw<X, Y>(plot: &Plot, file: &Path, x: X, y: Y) -> Result<(), Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
{
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&plot.title, TITLE)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(72)
        .build_cartesian_2d(x, y)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(&plot.x.label).y_desc(&plot.y.label).label_style(LETTERS).x_labels(LABELS).y_labels(LABELS);
    mesh.x_label_formatter(&|value| format!("{value:.0}")).y_label_formatter(&|value| short(*value));
    mesh.draw()?;
    for (which, curve) in plot.curves.iter().enumerate() {
        let color = Palette99::pick(which).to_rgba();
        let line = LineSeries::new(curve.points.iter().copied(), color.stroke_width(2));
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
        chart.draw_series(line)?.label(&curve.name).legend(key);
        chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, POINT, color.filled())))?;
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperLeft).background_style(WHITE.mix(0.8)).border_style(BLACK);
    legend.label_font(LETTERS).draw()?;
    area.present()?;
    Ok(())
}

/// As many digits as an axis has room for.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e4 => format!("{}k", value / 1e3),
        value if value >= 10.0 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}
