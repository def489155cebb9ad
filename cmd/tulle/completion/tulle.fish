# Completion of tulle's commands and flags for fish. tulle itself says what may come next.
function __tulle_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l reply ($words[1] complete -- $words[2..] "$current" 2>/dev/null)
    set -l prefix (string match -r -- '^--[^=]+=' "$current"; or echo)
    set -l value (string replace -- "$prefix" '' "$current")
    switch "$reply[1]"
        case files
            set reply (__fish_complete_path "$value")
        case directories
            set reply (__fish_complete_directories "$value" '')
        case '*'
            set reply $reply[2..]
    end
    printf '%s\n' $prefix$reply
end
complete -c tulle -f -a '(__tulle_complete)'
