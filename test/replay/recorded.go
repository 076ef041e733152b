package main

import (
	"bufio"
	"compress/gzip"
	"embed"
	"fmt"
	"io"
	"strconv"
	"strings"
)

//go:embed testdata/*.gz
var recordings embed.FS

// fields returns what stands in a recording.
func fields(name string, each func(line []string) error) error {
	f, err := recordings.Open("testdata/" + name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r := bufio.NewReader(z)
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		if words := strings.Fields(line); len(words) > 0 {
			if err := each(words); err != nil {
				return fmt.Errorf("%s, line %d: %w", name, n, err)
			}
		}
		switch err {
		case nil:
		case io.EOF:
			return nil
		default:
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// counts reads a recording that has the length of a step in seconds, and then
// the number of requests of each.
func counts(name string) (step float64, all []int, err error) {
	err = fields(name, func(words []string) error {
		for _, word := range words {
			n, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			if step == 0 {
				step = float64(n)
			} else {
				all = append(all, n)
			}
		}
		return nil
	})
	return step, all, err
}

// counted draws requests from counts between two times, uniform within a step,
// each with the probability keep.
func (s *source) counted(step float64, all []int, from, to, keep float64) Trace {
	for k := int(from / step); k < min(int(to/step), len(all)); k++ {
		for range all[k] {
			if s.Float64() < keep {
				s.request((float64(k)+s.Float64())*step - from)
			}
		}
	}
	return s.done(to - from)
}

// recorded returns the real traces. How requests are made of them is drawn by
// the seed.
func recorded(seed uint64) (all []Trace, err error) {
	for _, part := range []func(uint64) ([]Trace, error){azure, web, social, models} {
		traces, err := part(seed)
		if err != nil {
			return nil, err
		}
		all = append(all, traces...)
	}
	for k := range all {
		all[k].Real = true
	}
	return all, nil
}

// mostRequests bounds a trace: a busy one is thinned.
const mostRequests = 12_000

// azure are apps of Azure Functions on one day. Each instance takes one
// request at a time, as there.
func azure(seed uint64) (all []Trace, err error) {
	err = fields("azure2019_50apps_day1.tsv.gz", func(words []string) error {
		invocations, err := strconv.Atoi(words[1])
		if err != nil {
			return err
		}
		s := newSource("azure", "azure-"+words[0], 1, seed+uint64(len(all)), 1, 1)
		// The published fit of the apps' mean service times.
		s.mean = min(s.lognormalLog(-0.38, 2.36), 30)
		type active struct{ minute, containers float64 }
		var minutes []active
		containers := 0.0
		for m := range strings.SplitSeq(words[3], ",") {
			var a active
			if _, err := fmt.Sscanf(m, "%f:%f", &a.minute, &a.containers); err != nil {
				return fmt.Errorf("'%s' is not minute:containers: %w", m, err)
			}
			minutes = append(minutes, a)
			containers += a.containers
		}
		// No more can have been inside than there were containers.
		s.mean = min(s.mean, containers*minute/float64(invocations))
		each := min(float64(invocations), mostRequests) / containers
		for _, a := range minutes {
			n := each * a.containers
			whole := int(n)
			if s.Float64() < n-float64(whole) {
				whole++
			}
			for range whole {
				s.request((a.minute + s.Float64()) * minute)
			}
		}
		if len(s.Requests) > 1 {
			all = append(all, s.done(day))
		}
		return nil
	})
	return all, err
}

// web are visitors of a site, and requests to a load balancer.
func web(seed uint64) (all []Trace, err error) {
	step, n, err := counts("nasa_per_second.txt.gz")
	if err != nil {
		return nil, err
	}
	for week := range 3 {
		for _, keep := range []float64{0.001, 0.02} {
			from := float64(week) * 7 * day
			s := newSource("web", fmt.Sprintf("nasa-%d-%v", week, keep), 10, seed, 0.3, 1.5)
			all = append(all, s.counted(step, n, from, from+7*day, keep))
		}
	}
	if step, n, err = counts("nab_elb_request_count_8c0756_5min.txt.gz"); err != nil {
		return nil, err
	}
	for _, keep := range []float64{0.005, 0.05} {
		s := newSource("web", fmt.Sprintf("elb-%v", keep), 10, seed, 1, 1)
		all = append(all, s.counted(step, n, 0, float64(len(n))*step, keep))
	}
	return all, nil
}

// social are webhooks: what was said of a company.
func social(seed uint64) (all []Trace, err error) {
	for _, company := range []string{"crm", "ko"} {
		step, n, err := counts("nab_twitter_volume_" + company + "_5min.txt.gz")
		if err != nil {
			return nil, err
		}
		for part, keep := range []float64{0.05, 0.2, 0.8} {
			from := float64(part) * 10 * day
			s := newSource("social", fmt.Sprintf("%s-%v", company, keep), 1, seed, 1, 1)
			all = append(all, s.counted(step, n, from, from+10*day, keep))
		}
	}
	return all, nil
}

// models are requests to language models: they stay long, and come in an hour.
func models(seed uint64) (all []Trace, err error) {
	for _, name := range []string{"azure_llm2023_conv", "mooncake_conversation"} {
		for _, keep := range []float64{0.02, 0.3} {
			s := newSource("llm", fmt.Sprintf("%s-%v", name, keep), 8, seed, 1, 1)
			err := fields(name+".tsv.gz", func(words []string) error {
				var at, input, output float64
				if _, err := fmt.Sscan(strings.Join(words, " "), &at, &input, &output); err != nil {
					return err
				}
				if s.Float64() < keep {
					service := 0.05 + 0.0001*input + 0.02*output
					s.Requests = append(s.Requests, Request{At: seconds(at), Service: seconds(service)})
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
			all = append(all, s.done(hour))
		}
	}
	return all, nil
}
