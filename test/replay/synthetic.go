package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// source draws the requests of a trace.
type source struct {
	*rand.Rand
	Trace
	mean, cv float64 // of the service time, in seconds
}

func newSource(family, name string, concurrency int, seed uint64, mean, cv float64) *source {
	return &source{
		Rand:  rand.New(rand.NewPCG(seed, uint64(len(family)+len(name)))),
		Trace: Trace{Family: family, Name: name, Concurrency: concurrency}, mean: mean, cv: cv,
	}
}

// lognormal draws a number with a mean and a coefficient of variation.
func (s *source) lognormal(mean, cv float64) float64 {
	v := math.Log(1 + cv*cv)
	return mean * math.Exp(math.Sqrt(v)*s.NormFloat64()-v/2)
}

// lognormalLog draws a number whose logarithm has a mean and a deviation.
func (s *source) lognormalLog(mean, deviation float64) float64 {
	return math.Exp(mean + deviation*s.NormFloat64())
}

// request adds one at so many seconds.
func (s *source) request(at float64) {
	service := min(max(s.lognormal(s.mean, s.cv), 0.001), 600)
	s.Requests = append(s.Requests, Request{At: seconds(at), Service: seconds(service)})
}

// poisson adds requests at a rate between two times.
func (s *source) poisson(from, to, rate float64) {
	if rate <= 0 {
		return
	}
	for at := from + s.ExpFloat64()/rate; at < to; at += s.ExpFloat64() / rate {
		s.request(at)
	}
}

// varying adds requests at a rate that changes with time and is at most most.
func (s *source) varying(from, to, most float64, rate func(at float64) float64) {
	for at := from + s.ExpFloat64()/most; at < to; at += s.ExpFloat64() / most {
		if s.Float64()*most < rate(at) {
			s.request(at)
		}
	}
}

func (s *source) done(length float64) Trace {
	s.Length = seconds(length)
	return s.sorted()
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

const (
	minute = 60.0
	hour   = 60 * minute
	day    = 24 * hour
)

// synthetic returns the made traces. Everything in them follows from the seed.
func synthetic(seed uint64) []Trace {
	var all []Trace
	for k := range uint64(2) {
		all = append(all, bursts(seed+k)...)
		all = append(all, crons(seed+k)...)
		all = append(all, flashes(seed+k)...)
		all = append(all, onOff(seed+k)...)
		all = append(all, poissons(seed+k)...)
		all = append(all, sines(seed+k)...)
		all = append(all, stairs(seed+k)...)
		all = append(all, habits(seed+k)...)
	}
	return all
}

func bursts(seed uint64) (all []Trace) {
	for _, size := range []int{20, 200} {
		s := newSource("burst", fmt.Sprintf("burst-%d-%d", size, seed), 1+9*(size/200), seed, 1, 1)
		for at := 10 * minute; at < day/2; at += 10*minute + s.ExpFloat64()*30*minute {
			for range size {
				s.request(at + s.Float64()*2)
			}
		}
		all = append(all, s.done(day/2))
	}
	return all
}

func crons(seed uint64) (all []Trace) {
	for _, period := range []float64{10, 15, 30, 60} {
		s := newSource("cron", fmt.Sprintf("cron-%.0fm-%d", period, seed), 10, seed, 1, 1)
		offset := s.Float64() * period * minute
		for at := offset; at < 10*day; at += period * minute {
			for range 1 + s.IntN(3) {
				s.request(at + s.Float64()*2)
			}
		}
		all = append(all, s.done(10*day))
	}
	return all
}

func flashes(seed uint64) (all []Trace) {
	for _, height := range []float64{20, 60} {
		s := newSource("flash", fmt.Sprintf("flash-%.0f-%d", height, seed), 10, seed, 1, 1)
		crowds := []float64{hour, 2.5 * hour}
		s.varying(0, 4*hour, height+0.2, func(at float64) float64 {
			rate := 0.02
			for _, from := range crowds {
				switch since := at - from; {
				case since < 0:
				case since < 5*minute:
					rate += height
				default:
					rate += height * math.Exp(-(since-5*minute)/(2*minute))
				}
			}
			return rate
		})
		all = append(all, s.done(4*hour))
	}
	return all
}

func onOff(seed uint64) (all []Trace) {
	for _, rate := range []float64{1, 10} {
		s := newSource("on/off", fmt.Sprintf("onoff-%.0f-%d", rate, seed), 5, seed, 0.3, 1)
		for at := minute; at < 8*hour; {
			on := 2*minute + s.ExpFloat64()*3*minute
			s.poisson(at, min(at+on, 8*hour), rate)
			at += on + 5*minute + s.ExpFloat64()*10*minute
		}
		all = append(all, s.done(8*hour))
	}
	return all
}

func poissons(seed uint64) (all []Trace) {
	for _, every := range []float64{hour, 10 * minute, minute, 5, 0.5} {
		s := newSource("poisson", fmt.Sprintf("poisson-%v-%d", seconds(every), seed), 4, seed, 1, 1.5)
		length := min(7*day, every*10_000)
		s.poisson(0, length, 1/every)
		all = append(all, s.done(length))
	}
	return all
}

func sines(seed uint64) (all []Trace) {
	for _, most := range []float64{0.02, 0.2} {
		s := newSource("sine", fmt.Sprintf("sine-%v-%d", most, seed), 1, seed, 5, 1)
		s.varying(0, 2*day, most, func(at float64) float64 {
			return most * max(0, 0.5-0.55*math.Cos(2*math.Pi*at/day))
		})
		all = append(all, s.done(2*day))
	}
	return all
}

func stairs(seed uint64) (all []Trace) {
	for _, most := range []float64{4, 10} {
		s := newSource("steps", fmt.Sprintf("steps-%.0f-%d", most, seed), 2, seed, 1, 0.5)
		for at := 0.0; at < 2*hour; at += 10 * minute {
			s.poisson(at, at+10*minute, most*s.Float64())
		}
		all = append(all, s.done(2*hour))
	}
	return all
}

// habits are users whose ways change: a job each day, then one each 20
// minutes, then people in working hours.
func habits(seed uint64) []Trace {
	s := newSource("habits", fmt.Sprintf("habits-%d", seed), 10, seed, 2, 1)
	for d := range 7 {
		at := float64(d)*day + 8*hour + 30*s.NormFloat64()
		for range 5 {
			s.request(at + s.Float64()*20)
		}
	}
	for at := 7 * day; at < 10*day; at += 20 * minute {
		s.request(at + 5*s.Float64())
	}
	for d := 10; d < 14; d++ {
		s.poisson(float64(d)*day+9*hour, float64(d)*day+17*hour, 1/(4*minute))
	}
	return []Trace{s.done(14 * day)}
}
