package coordinator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/caddy-usher/usher/cluster"
)

// version is that of the encoding. Objects of other versions are not read.
const version = 1

// The object, as it is stored. Fields are never added or renamed without a new
// version.
type (
	object struct {
		Version int    `json:"version"`
		Cluster string `json:"cluster"`
		View    view   `json:"view"`
	}
	view struct {
		Number  uint64 `json:"number"`
		Leader  string `json:"leader"`
		Members []peer `json:"members"`
		Lost    []peer `json:"lost"`
	}
	peer struct {
		ID      string `json:"id"`
		Boot    string `json:"boot"`
		Address string `json:"address"`
	}
)

// Encode returns the object for a view of the cluster with this name. It fails
// for a view that Decode would not read back as it is.
func Encode(name string, v cluster.View) ([]byte, error) {
	data, err := json.Marshal(object{version, name, view{v.Number, v.Leader, peers(v.Members), peers(v.Lost)}})
	if err != nil {
		return nil, err
	}
	back, err := Decode(name, data)
	if err == nil && !back.Equal(v) {
		err = errors.New("it holds text that is not UTF-8")
	}
	if err != nil {
		return nil, fmt.Errorf("view %d cannot be stored: %w", v.Number, err)
	}
	return data, nil
}

// Decode returns the view in an object. It fails unless the object was made by
// Encode for the cluster with this name.
func Decode(name string, data []byte) (cluster.View, error) {
	var head struct {
		Version *int `json:"version"`
	}
	switch err := json.Unmarshal(data, &head); {
	case err != nil:
		return cluster.View{}, fmt.Errorf("the object is not what Usher stores: %w", err)
	case head.Version == nil:
		return cluster.View{}, errors.New("the object is not what Usher stores: it has no version")
	case *head.Version != version:
		return cluster.View{}, fmt.Errorf("the object has version %d, and this Usher knows version %d only: all Caddys of a cluster need an Usher that knows the same", *head.Version, version)
	}
	var o object
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return cluster.View{}, fmt.Errorf("the object is not what Usher stores: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return cluster.View{}, errors.New("the object is not what Usher stores: something follows it")
	}
	if o.Cluster != name {
		return cluster.View{}, fmt.Errorf("the object belongs to the cluster %q and not to %q: each cluster needs an object of its own", o.Cluster, name)
	}
	v := cluster.View{Number: o.View.Number, Leader: o.View.Leader, Members: members(o.View.Members), Lost: members(o.View.Lost)}
	if v.Number == 0 || !v.Valid() {
		return cluster.View{}, fmt.Errorf("the object holds a view that no Caddy writes: number %d, leader %q", v.Number, v.Leader)
	}
	return v, nil
}

// peers returns the stored form of a list, which is never null.
func peers(all []cluster.Peer) []peer {
	out := make([]peer, 0, len(all))
	for _, p := range all {
		out = append(out, peer(p))
	}
	return out
}

func members(all []peer) []cluster.Peer {
	var out []cluster.Peer
	for _, p := range all {
		out = append(out, cluster.Peer(p))
	}
	return out
}
