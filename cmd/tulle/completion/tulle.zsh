#compdef tulle
# Completion of tulle's commands and flags for zsh. tulle itself says what may come next.
_tulle() {
	local -a reply
	reply=("${(@f)$("${(Q)words[1]}" complete -- "${(@Q)words[2,CURRENT-1]}" "$PREFIX" 2>/dev/null)}")
	local kind=$reply[1]
	shift reply
	[[ $PREFIX != --*=* ]] || compset -P 1 '*='
	case $kind in
	files) _files ;;
	directories) _files -/ ;;
	*)
		reply=("${(@)reply//:/\\:}")
		reply=("${(@)reply/$'\t'/:}")
		_describe tulle reply
		;;
	esac
}
if [[ $funcstack[1] == _tulle ]]; then
	_tulle "$@"
else
	compdef _tulle tulle
fi
