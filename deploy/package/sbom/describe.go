package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	cyclonedx "github.com/CycloneDX/cyclonedx-go"
)

// describe writes the bill of materials of a binary beside it, as NAME.cdx.json.
func (r release) describe(binary string, modules []module) (err error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	tulle := cyclonedx.Component{
		BOMRef: "tulle", Type: cyclonedx.ComponentTypeApplication, Name: filepath.Base(binary), Version: r.version,
		Hashes:     &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sha256.Sum256(content))}},
		Licenses:   choice([]string{"Apache-2.0"}),
		PackageURL: "pkg:golang/github.com/tulle-net/tulle@" + r.version,
		Properties: &[]cyclonedx.Property{{Name: "commit", Value: r.commit}},
	}
	components, needs := []cyclonedx.Component{}, []string{}
	for _, m := range modules {
		url := "pkg:golang/" + m.path + "@" + m.version
		needs = append(needs, url)
		components = append(components, cyclonedx.Component{BOMRef: url, Type: cyclonedx.ComponentTypeLibrary, Name: m.path, Version: m.version,
			Scope: cyclonedx.ScopeRequired, Licenses: choice(m.licenses), PackageURL: url})
	}
	bom := cyclonedx.NewBOM()
	bom.Metadata = &cyclonedx.Metadata{Timestamp: r.when.Format(time.RFC3339), Component: &tulle}
	bom.Components, bom.Dependencies = &components, &[]cyclonedx.Dependency{{Ref: tulle.BOMRef, Dependencies: &needs}}
	file, err := os.Create(binary + ".cdx.json")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return cyclonedx.NewBOMEncoder(file, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
}

// choice says licences as CycloneDX wants them: one as such, several as an expression.
func choice(ids []string) *cyclonedx.Licenses {
	if len(ids) == 1 {
		return &cyclonedx.Licenses{{License: &cyclonedx.License{ID: ids[0]}}}
	}
	return &cyclonedx.Licenses{{Expression: strings.Join(ids, " AND ")}}
}
