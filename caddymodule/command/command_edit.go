package command

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
)

// edit changes a definition in the editor of the user.
func (c *console) edit(o madeOptions, args []string) error {
	name := args[0]
	k, err := c.knowMade(name)
	switch {
	case err != nil:
		return err
	case !k.Made.Deleted.IsZero():
		return &refusedCall{http.StatusConflict, fmt.Sprintf("%s is deleted: 'caddy usher rollback %s' brings it back", name, name)}
	case k.Made.ETag == "":
		return &refusedCall{http.StatusConflict, fmt.Sprintf("the service %s was discovered (%s): change its labels there", name, k.Made.Source)}
	}
	var before bytes.Buffer
	if err := json.Indent(&before, k.Made.Definition, "", "  "); err != nil {
		return fmt.Errorf("the definition of %s: %w", name, err)
	}
	file, after, err := c.edited(name, append(before.Bytes(), '\n'))
	if err != nil {
		return err
	}
	done, err := c.putEdited(o, k, before.Bytes(), after)
	if err != nil && !done {
		return fmt.Errorf("%w. Your text is kept in %s", err, file)
	}
	_ = os.Remove(file)
	return err
}

// edited lets the user change a text in a file that other users cannot read. It
// returns the file with the changed text.
func (c *console) edited(name string, text []byte) (file string, after []byte, err error) {
	f, err := os.CreateTemp("", "usher-"+name+"-*.json") // mode 0600
	if err != nil {
		return "", nil, err
	}
	file = f.Name()
	_, err = f.Write(text)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		_ = os.Remove(file)
		return "", nil, err
	}
	editor := cmp.Or(os.Getenv("VISUAL"), os.Getenv("EDITOR"), "vi")
	// The variable may have arguments, which the shell reads.
	run := exec.Command("sh", "-c", editor+` "$1"`, "sh", file) //nolint:gosec // it is the user's own variable, as for other programs
	run.Stdin, run.Stdout, run.Stderr = c.in, c.out, c.err
	failed := run.Run()
	if after, err = os.ReadFile(file); err != nil {
		return "", nil, fmt.Errorf("what the editor wrote cannot be read: %w", err)
	}
	if failed == nil {
		return file, after, nil
	}
	err = fmt.Errorf("the editor '%s' ended with an error, and nothing was sent: %w", editor, failed)
	if bytes.Equal(after, text) {
		_ = os.Remove(file)
		return "", nil, err
	}
	return "", nil, fmt.Errorf("%w. Your text is kept in %s", err, file)
}

// putEdited sends a definition that has changed. It returns whether the text is of
// no use any more.
func (c *console) putEdited(o madeOptions, k *known, before, after []byte) (done bool, err error) {
	if len(bytes.TrimSpace(after)) == 0 {
		_, err := fmt.Fprintln(c.err, "The text is empty: nothing was sent.")
		return true, err
	}
	var compact [2]bytes.Buffer
	if err := json.Compact(&compact[1], after); err != nil {
		return false, fmt.Errorf("the text is no JSON, and nothing was sent: %w", err)
	}
	if err := json.Compact(&compact[0], before); err != nil {
		return false, err
	}
	if bytes.Equal(compact[0].Bytes(), compact[1].Bytes()) {
		_, err := fmt.Fprintf(c.err, "%s is unchanged: nothing was sent.\n", k.Name)
		return true, err
	}
	err = c.change(k.Name, o.wait, k, &change{method: http.MethodPut, path: servicePath(k.Name), conditions: matching(k), body: json.RawMessage(after)})
	_, stored := errors.AsType[*notInForce](err)
	return err == nil || stored, err
}
