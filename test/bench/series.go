package main

import (
	"math"
	"slices"
)

// A series is one figure, measured once in every round.
type series []float64

func (s series) sorted() series {
	c := slices.Clone(s)
	slices.Sort(c)
	return c
}

// quantile interpolates between the two nearest values.
func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	c := s.sorted()
	place := q * float64(len(c)-1)
	below := int(place)
	if below+1 == len(c) {
		return c[below]
	}
	return c[below] + (c[below+1]-c[below])*(place-float64(below))
}

func (s series) median() float64 { return s.quantile(0.5) }

// over divides round by round: what disturbs the machine for longer than a
// round disturbs both sides, and cancels out.
func (s series) over(other series) series {
	ratios := make(series, min(len(s), len(other)))
	for i := range ratios {
		ratios[i] = s[i] / other[i]
	}
	return ratios
}

// minus subtracts round by round.
func (s series) minus(other series) series {
	d := make(series, min(len(s), len(other)))
	for i := range d {
		d[i] = s[i] - other[i]
	}
	return d
}

// fewRounds is below how many rounds their spread is not estimated.
const fewRounds = 5

// noise is how far the median may be off by chance, as a part of it: half the
// width of its 95 % interval, from the spread of the rounds.
func (s series) noise() float64 {
	m := s.median()
	if len(s) < 2 || m == 0 {
		return 0
	}
	deviations := make(series, len(s))
	for i, v := range s {
		deviations[i] = math.Abs(v - m)
	}
	if len(s) < fewRounds {
		// So few say little about how they spread: the farthest one counts.
		return deviations.quantile(1) / math.Abs(m)
	}
	// The median of the deviations, as if it were of a normal distribution,
	// makes the standard error of a median.
	sigma := 1.4826 * deviations.median()
	return 1.96 * 1.2533 * sigma / math.Sqrt(float64(len(s))) / math.Abs(m)
}
