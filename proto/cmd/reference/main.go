// Command reference generates the documents for developers of clients from the declarations in proto/:
// docs/reference.md, and the files that gateways serve at /docs (an index, the reference as a page, an AsyncAPI
// document and an OpenAPI document).
//
// It reads names, types and options from the linked Go packages, as the services do. It reads comments from the .proto
// files, because the descriptors in the Go packages contain no comments. The Go packages must be generated first:
// make generate generates the packages and then the documents.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/edumatrix/interlinked/proto/catalog"
)

func main() {
	root := flag.String("root", "..", "the root of the repository")
	flag.Parse()
	if err := run(*root); err != nil {
		fmt.Fprintln(os.Stderr, "reference:", err)
		os.Exit(1)
	}
}

func run(root string) error {
	files, err := generate(filepath.Join(root, "proto"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(root, f.path), f.content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// file is a generated file, with its path from the root of the repository.
type file struct {
	path    string
	content []byte
}

// generate returns the files that are generated from the .proto files in a folder and from the packages that this
// program links.
func generate(protos string) ([]file, error) {
	d, err := read(protos)
	if err != nil {
		return nil, err
	}
	async, err := d.asyncAPI()
	if err != nil {
		return nil, fmt.Errorf("AsyncAPI: %w", err)
	}
	open, err := d.openAPI()
	if err != nil {
		return nil, fmt.Errorf("OpenAPI: %w", err)
	}
	reference := d.reference()
	const served = "proto/reference/"
	return []file{
		{"docs/reference.md", reference.markdown()},
		{served + "reference.html", reference.html()},
		{served + "index.html", d.index().html()},
		{served + "asyncapi.json", async},
		{served + "openapi.json", open},
	}, nil
}

// declarations are the declarations and comments from which the documents are generated. The methods commands, queries,
// events and signals return the declarations that clients may use, sorted by name.
type declarations struct {
	catalog  *catalog.Catalog
	comments comments
}

func read(protos string) (*declarations, error) {
	c, err := catalog.Load()
	if err != nil {
		return nil, err
	}
	comments, err := readComments(context.Background(), protos)
	if err != nil {
		return nil, err
	}
	return &declarations{catalog: c, comments: comments}, nil
}

func (d *declarations) commands() (public []*catalog.Command) {
	for _, name := range d.catalog.CommandNames() {
		if c, _ := d.catalog.Command(name); c.Public {
			public = append(public, c)
		}
	}
	return public
}

func (d *declarations) queries() (public []*catalog.Query) {
	for _, name := range d.catalog.QueryNames() {
		if q, _ := d.catalog.Query(name); q.Public {
			public = append(public, q)
		}
	}
	return public
}

func (d *declarations) events() (all []*catalog.Event) {
	for _, name := range d.catalog.EventNames() {
		e, _ := d.catalog.Event(name)
		all = append(all, e)
	}
	return all
}

func (d *declarations) signals() (all []*catalog.Signal) {
	for _, name := range d.catalog.SignalNames() {
		s, _ := d.catalog.Signal(name)
		all = append(all, s)
	}
	return all
}

func (d *declarations) denseStream(kind string) bool {
	return slices.Contains(d.catalog.DenseStreams(), kind)
}
