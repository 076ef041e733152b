package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-usher/usher/caddymodule/hub"
)

// addSplit adds the command about splits.
func (cs commands) addSplit(cmd *cobra.Command) {
	cmd.AddCommand(&cobra.Command{
		Use:   "split [<name> [<service> <weight>... | reset]]",
		Short: "Shows how splits divide their requests, and changes the weights",
		Long: `
Shows all splits, or one of them. With services and weights it changes the weights
of these sides and leaves those of the others as they are, at once and without a
reload. They hold until they are changed again, or 'reset' goes back to those of
the configuration, or a configuration with other weights is loaded.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := cs.console(cmd)
			if err == nil {
				err = c.split(args)
			}
			return exit(cmd, err)
		},
	})
}

const splitReset = "reset"

func (c *console) split(args []string) error {
	if len(args) == 0 {
		return c.listSplits()
	}
	var v hub.SplitView
	path := "splits/" + url.PathEscape(args[0])
	resp, err := c.call(http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	conditions := http.Header{"If-Match": {resp.Header.Get("ETag")}}
	raw, err := c.decode(resp, &v)
	if err != nil {
		return err
	}
	change := args[1:]
	switch {
	case len(change) == 0:
	case len(change) == 1 && change[0] == splitReset:
		raw, err = c.changeSplit(&v, http.MethodDelete, path, conditions, nil)
	default:
		var weights map[string]int
		if weights, err = changedWeights(v, change); err == nil {
			raw, err = c.changeSplit(&v, http.MethodPut, path, conditions, map[string]any{"weights": weights})
		}
	}
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	return c.table("", splitRows(v))
}

// changeSplit changes what has not changed since it was read.
func (c *console) changeSplit(v *hub.SplitView, method, path string, conditions http.Header, body any) (json.RawMessage, error) {
	resp, err := c.callIf(method, path, conditions, body)
	if err != nil {
		return nil, err
	}
	*v = hub.SplitView{}
	return c.decode(resp, v)
}

// changedWeights returns the weights of v with those that are given.
func changedWeights(v hub.SplitView, given []string) (map[string]int, error) {
	if len(given)%2 != 0 {
		return nil, errors.New("give services, each with its weight, or 'reset'")
	}
	weights := v.Weights()
	for k := 0; k < len(given); k += 2 {
		if _, ok := weights[given[k]]; !ok {
			return nil, fmt.Errorf("%s is no side of split %s", given[k], v.Name)
		}
		n, err := strconv.Atoi(given[k+1])
		if err != nil {
			return nil, fmt.Errorf("the weight '%s' of %s is no number", given[k+1], given[k])
		}
		weights[given[k]] = n
	}
	return weights, nil
}

func (c *console) listSplits() error {
	var all []hub.SplitView
	raw, err := c.ask(http.MethodGet, "splits", nil, &all)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(raw)
	}
	return c.table("", splitRows(all...))
}

// splitRows are the rows of a table.
func splitRows(all ...hub.SplitView) [][]string {
	rows := [][]string{{"SPLIT", "SERVICE", "WEIGHT", "SHARE", "CONFIGURED", "SET"}}
	for _, v := range all {
		set := "-"
		if v.Set != nil {
			set = v.Set.At.UTC().Format(time.RFC3339) + " by " + v.Set.By
		}
		for _, side := range v.Sides {
			rows = append(rows, []string{v.Name, side.Service, strconv.Itoa(side.Weight), fmt.Sprintf("%.4g%%", side.Share*100), strconv.Itoa(side.Configured), set})
		}
	}
	return rows
}
