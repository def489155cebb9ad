package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// licenseFile is how files with licences, and what is to go with them, are named in Go modules.
var licenseFile = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// license is what a licence is recognized by: words that are in its text, and in no other's that is here, in small letters and without commas.
type license struct {
	id    string // as SPDX has it
	words string
	but   string // words that make it another; "" for none
}

const (
	binaryForms = "redistribution and use in source and binary forms"
	endorse     = "endorse or promote products"
)

// licenses are those that tulle's modules have.
func licenses() []license {
	return []license{
		{"Apache-2.0", "apache license version 2.0", ""},
		{"MIT", "permission is hereby granted free of charge", ""},
		{"BSD-3-Clause", endorse, ""},
		{"BSD-2-Clause", binaryForms, endorse},
	}
}

// readLicenses finds out under which licences the module in dir is.
func (m *module) readLicenses(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("the licence of %s: %w", m.path, err)
	}
	found := map[string]bool{}
	for _, e := range entries {
		if !licenseFile.MatchString(e.Name()) || e.IsDir() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m.texts = append(m.texts, path)
		plain := strings.ToLower(strings.Join(strings.Fields(strings.ReplaceAll(string(text), ",", " ")), " "))
		for _, l := range licenses() {
			if strings.Contains(plain, l.words) && (l.but == "" || !strings.Contains(plain, l.but)) {
				found[l.id] = true
			}
		}
	}
	if m.licenses = sortedKeys(found); len(found) == 0 {
		return fmt.Errorf("the licence of %s %s is not known: see %s", m.path, m.version, dir)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
